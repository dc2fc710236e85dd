"""The project built anew in a folder of its own, from sources that may be changed there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).parents[2]


class Copy:
    """The project in a folder of its own, with a Python that imports nothing of Vitral from elsewhere.

    `python` is an interpreter that has numpy, nanobind and pytest: one of another architecture, with `options`
    that let cmake compile for it; without it this one, in an environment of its own.
    """

    def __init__(self, folder: Path, python: Path | None = None, options: tuple[str, ...] = ()) -> None:
        self.folder = folder
        self.options = options
        for name in ("native", "src", "tests"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "_core*.so"))
        shutil.copy(ROOT / "pyproject.toml", folder)
        self.python = python or self._environment()

    def _environment(self) -> Path:
        folder = self.folder
        venv.create(folder / "venv", with_pip=False)
        [site] = (folder / "venv" / "lib").glob("python*/site-packages")
        paths = [str(folder / "src"), *dict.fromkeys(p for p in sys.path if p.endswith("site-packages"))]
        (site / "libraries.pth").write_text("\n".join(paths) + "\n")
        return folder / "venv" / "bin" / "python"

    def build(self) -> None:
        """Compile what changed and put the extension where it is imported from."""
        build = self.folder / "build"
        if not build.exists():
            options = (f"-DPython_EXECUTABLE={self.python}", "-DCMAKE_BUILD_TYPE=Release", *self.options)
            _quietly("cmake", "-S", "native", "-B", "build", "-GNinja", *options, at=self.folder)
        _quietly("ninja", "-C", "build", at=self.folder)
        [module] = build.glob("_core*.so")
        shutil.copy(module, self.folder / "src" / "vitral" / "native")

    def passes(self, *tests: str) -> bool:
        """Whether these tests pass; anything but pass and fail is an error."""
        command = [str(self.python), "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
        done = subprocess.run(
            command, cwd=self.folder, capture_output=True, text=True, check=False, env=dict(os.environ)
        )
        if done.returncode not in (0, 1):
            raise SystemExit(f"the tests could not run:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        return done.returncode == 0


def _quietly(*command: str, at: Path) -> None:
    done = subprocess.run(command, cwd=at, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
