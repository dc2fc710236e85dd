"""A PostgreSQL of one's own for tests: made in a folder, reached by a socket in it, gone afterwards."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

__all__ = ["postgres"]


def programs() -> Path | None:
    """The folder of initdb and postgres: on the path, or where Debian puts them."""
    found = shutil.which("initdb")
    if found is not None:
        return Path(found).resolve().parent
    places = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return places[-1].parent if places else None


@contextlib.contextmanager
def postgres() -> Iterator[str]:
    """The URL of an empty database; the test is skipped, saying so, where PostgreSQL or its driver is missing."""
    pytest.importorskip("psycopg", reason="the driver psycopg is not installed: pip install 'vitral[postgres]'")
    binaries = programs()
    if binaries is None:
        pytest.skip("there is no PostgreSQL here: apt-get install postgresql")
    with tempfile.TemporaryDirectory(prefix="pg", dir="/tmp", ignore_cleanup_errors=True) as folder:
        user = None  # PostgreSQL does not run as root
        if os.geteuid() == 0:
            user = next(name for name in ("postgres", "nobody") if _exists(name))
            shutil.chown(folder, user)
        data = Path(folder) / "data"
        made = [binaries / "initdb", "-D", data, "-U", "vitral", "--auth=trust", "-E", "UTF8", "--locale=C", "-N"]
        subprocess.run(made, user=user, check=True, capture_output=True, timeout=120, cwd=folder)
        settings = ["-c", "listen_addresses=", "-c", f"unix_socket_directories={folder}", "-c", "max_connections=30"]
        with (Path(folder) / "log").open("w") as log:
            process = subprocess.Popen(
                [binaries / "postgres", "-D", data, *settings], user=user, stdout=log, stderr=log, cwd=folder
            )
        try:
            url = f"postgresql+psycopg://vitral@/postgres?host={quote(folder)}"
            _wait(url, process, Path(folder) / "log")
            yield url
        finally:
            process.send_signal(signal.SIGINT)  # the fast way to stop: whoever is connected is sent away
            process.wait(60)


def _exists(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    import sqlalchemy as sa

    engine = sa.create_engine(url)
    end = time.monotonic() + 60
    while True:
        try:
            with engine.connect():
                break
        except sa.exc.OperationalError:
            assert process.poll() is None and time.monotonic() < end, log.read_text()
            time.sleep(0.1)
    engine.dispose()
