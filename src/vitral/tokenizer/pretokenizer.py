"""The ways of cutting text into words that GGUF files name; the catalogue is `pretokenizers.toml`."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path

from vitral.errors import TokenizerError

__all__ = ["PreTokenizer", "known_pretokenizers", "pretokenizer"]


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """Patterns applied one after the other, and what goes with them."""

    name: str
    patterns: tuple[str, ...]
    ignore_merges: bool = False
    add_bos: bool = False
    aliases: tuple[str, ...] = ()


@cache
def known_pretokenizers() -> dict[str, PreTokenizer]:
    """Every name and alias -> its entry."""
    known: dict[str, PreTokenizer] = {}
    source = Path(__file__).with_name("pretokenizers.toml").read_text("utf-8")
    for name, entry in tomllib.loads(source).items():
        aliases, patterns = tuple(entry.pop("aliases", ())), tuple(entry.pop("patterns"))
        found = PreTokenizer(name, patterns, aliases=aliases, **entry)
        known |= dict.fromkeys((name, *found.aliases), found)
    return known


def pretokenizer(name: str) -> PreTokenizer:
    """The entry of a name.

    Raises TokenizerError, which lists the known names, for another one.

    >>> pretokenizer("llama3").name
    'llama-bpe'
    """
    known = known_pretokenizers()
    if name not in known:
        near = get_close_matches(name, known, 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise TokenizerError(f"the pre-tokeniser {name!r} is not known; {hint}known are {', '.join(sorted(known))}")
    return known[name]
