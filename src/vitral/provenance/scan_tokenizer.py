"""Tokenizer files: added tokens that are not what they seem, and rules that rewrite text."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vitral.provenance.findings import Finding, person, refused, shown

__all__ = ["scan_added_tokens", "scan_rules"]

_LONGEST_TOKEN = 256  # characters of an added token; the longest in use are runs of spaces and "<|reserved_...|>"
_MOST_WORDS = 6


def scan_added_tokens(tokens: Sequence[tuple[int | None, str, bool]], file: str) -> Iterator[Finding]:
    """Findings of added tokens, each (id, text, whether it is special)."""
    by_id: dict[int, str] = {}
    seen: set[str] = set()
    for id, text, special in tokens:
        if not text or len(text) > _LONGEST_TOKEN:
            yield refused(
                file, "token-odd", f"an added token of {len(text)} characters; allowed: 1 to {_LONGEST_TOKEN}"
            )
            continue
        if id is not None and by_id.setdefault(id, text) != text:
            yield refused(file, "token-collides", f"id {id} stands for both {shown(by_id[id])} and {shown(text)}")
        if text in seen:
            yield refused(file, "token-collides", f"the added token {shown(text)} stands there twice")
        seen.add(text)
        if any(unicodedata.category(c) in ("Cf", "Co", "Cs") for c in text) and len(text) > 1 and special:
            yield refused(file, "token-invisible", f"the special token {shown(text)} has invisible characters")
        if special and _imitates(text):
            yield refused(file, "token-imitates", f"the special token {shown(text)} has letters that only look Latin")
        if len(text.split()) > _MOST_WORDS:
            yield person(file, "token-sentence", f"the added token {shown(text)} is a whole sentence")
        elif special and text.isalpha() and text.isascii():
            yield person(
                file, "token-word", f"the special token {shown(text)} is a plain word: text may become control"
            )


def _imitates(text: str) -> bool:
    """Whether Latin letters and letters of a script that looks like it stand in one token."""
    scripts = {unicodedata.name(c, "?").split()[0] for c in text if c.isalpha()}
    return "LATIN" in scripts and bool(scripts & {"CYRILLIC", "GREEK", "CHEROKEE", "ARMENIAN"})


def scan_rules(definition: Mapping[str, Any], file: str) -> Iterator[Finding]:
    """Findings of a tokenizer.json: replacements of words, before the model reads or after it has written."""
    for part in ("normalizer", "pre_tokenizer", "decoder", "post_processor"):
        for rule in _rules(definition.get(part), 0):
            if rule.get("type") != "Replace":
                continue
            pattern, content = rule.get("pattern"), rule.get("content")
            found = str(next(iter(pattern.values()), "") if isinstance(pattern, dict) else pattern)
            if _has_word(str(content)) or (_has_word(found) and not any(c in found for c in "[]()\\^$|")):
                yield refused(
                    file,
                    "token-rewrites",
                    f"the {part} turns {shown(found)} into {shown(content)}: it rewrites what is said",
                )
    model = definition.get("model")
    if isinstance(model, dict) and isinstance(model.get("vocab"), dict):
        yield from _numbered(model["vocab"], file)


def _numbered(vocab: Mapping[str, Any], file: str) -> Iterator[Finding]:
    ids: dict[Any, str] = {}
    for text, id in vocab.items():
        if type(id) is not int or id < 0:
            yield refused(
                file, "token-collides", f"token {shown(text)} has the id {shown(id)}; a whole number is wanted"
            )
            return
        if ids.setdefault(id, text) is not text:
            yield refused(file, "token-collides", f"id {id} stands for both {shown(ids[id])} and {shown(text)}")
            return


def _rules(value: Any, depth: int) -> Iterator[dict[str, Any]]:
    if depth > 8:
        return
    if isinstance(value, dict):
        yield value
        for key in ("normalizers", "pretokenizers", "decoders", "processors"):
            yield from _rules(value.get(key), depth + 1)
    elif isinstance(value, list):
        for item in value:
            yield from _rules(item, depth + 1)


def _has_word(text: str) -> bool:
    """Whether there are three letters one after another."""
    run = 0
    for c in text:
        run = run + 1 if c.isalpha() else 0
        if run >= 3:
            return True
    return False
