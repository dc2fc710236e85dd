"""Every command there is, whoever adds one: `--json`, help that says something, no two names for one thing."""

from __future__ import annotations

import re
from typing import Any

import pytest
from typer.main import get_command

from vitral.cli.main import app, outline


def every_command(group: Any = None, path: tuple[str, ...] = ()) -> dict[str, Any]:
    """All commands by their words, groups opened."""
    found: dict[str, Any] = {}
    for name, command in (group or get_command(app())).commands.items():
        if hasattr(command, "commands"):
            found |= every_command(command, (*path, name))
        else:
            found[" ".join((*path, name))] = command
    return found


COMMANDS = every_command()


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_can_speak_json(name: str) -> None:
    assert any("--json" in parameter.opts for parameter in COMMANDS[name].params)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_option_says_what_it_is_for(name: str) -> None:
    command = COMMANDS[name]
    first, _, _ = command.help.partition("\n")
    assert re.fullmatch(r"[A-Z].*\.", first), "a sentence"
    for parameter in command.params:
        assert parameter.help, parameter.name


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_of_commands_cuts_no_sentence(name: str) -> None:
    assert not COMMANDS[name].get_short_help_str(limit=65).endswith("...")


def test_the_outline_says_of_each_command_what_it_says_of_itself() -> None:
    whole, brief = get_command(app()), get_command(outline())
    said = [
        {name: command.get_short_help_str(limit=200) for name, command in program.commands.items()}
        for program in (whole, brief)
    ]
    assert said[0] == said[1]
