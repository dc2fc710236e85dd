"""Records a terminal session with the real commands as docs/session.svg: `python -m tools.session`."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

__all__ = ["COMMANDS", "PICTURE"]

PICTURE = Path(__file__).parent.parent / "docs" / "session.svg"
WIDTH = 92
COMMANDS = (
    "vitral show smollm2:135m",
    'vitral run smollm2:135m --prompt "What is a stained-glass window? Answer in two sentences."',
    "vitral doctor",
)
# Dark glass; the colours have a contrast of at least 7 to 1 on it, dimmed labels of about 5.
_THEME = TerminalTheme(
    (22, 24, 33),
    (230, 232, 240),
    [(22, 24, 33), (255, 138, 128), (143, 227, 136), (255, 213, 128), (130, 190, 255), (224, 170, 255), (120, 220, 232),
     (230, 232, 240)],
    [(150, 156, 176), (255, 168, 160), (173, 240, 168), (255, 228, 165), (165, 208, 255), (236, 198, 255),
     (160, 236, 244), (255, 255, 255)],
)  # fmt: skip


def _said(command: str) -> Text:
    """What a command prints on a terminal of this width, colours included; home folders are shortened."""
    env = {**os.environ, "COLUMNS": str(WIDTH), "FORCE_COLOR": "1", "TERM": "xterm-256color"}
    args = [sys.executable, "-m", *shlex.split(command)]
    done = subprocess.run(args, capture_output=True, text=True, env=env, check=True, stdin=subprocess.DEVNULL)
    home = str(Path.home())
    lines = [line.replace(home, "~").rstrip() for line in done.stdout.rstrip().splitlines()]
    return Text.from_ansi("\n".join(lines))


def main() -> None:
    """Run the commands and keep the picture."""
    console = Console(record=True, width=WIDTH, force_terminal=True, file=Path(os.devnull).open("w"))  # noqa: SIM115
    for i, command in enumerate(COMMANDS):
        if i:
            console.print()
        console.print(Text("$ ", "bold bright_green") + Text(command, "bold bright_white"), soft_wrap=False)
        console.print(_said(command))
    console.save_svg(str(PICTURE), title="Vitral", theme=_THEME)


if __name__ == "__main__":
    main()
