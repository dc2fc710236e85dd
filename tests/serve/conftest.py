"""One server for most tests: a tiny model of stories, and the embedded one for chats."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serve.live import Live, live

TINY = "stories260K.bin"
CHAT = "smollm2:135m"


@pytest.fixture(scope="session")
def tiny_path(data_dir: Path) -> str:
    return str(data_dir / "model-stories260k" / TINY)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, tiny_path: str, smollm2: Path) -> Iterator[Live]:
    with live(tmp_path_factory.mktemp("serve"), tiny_path, CHAT, "--context", "512") as running:
        yield running
