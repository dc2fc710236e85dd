"""The document of an inspection as one HTML page that needs nothing else: no server, no network."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

__all__ = ["page"]

_MARK = "%DOCUMENT%"


def page(document: Mapping[str, Any]) -> str:
    """The page, built from `web/` beforehand, with the document in it.

    Tokens may hold anything. `<`, `>` and `&` are written as escapes of JSON, so nothing in the document
    ends the element that holds it; the page itself makes text nodes of strings, never markup.
    """
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    before, after = files("vitral.lens").joinpath("static", "inspect.html").read_text("utf-8").split(_MARK)
    return before + text + after
