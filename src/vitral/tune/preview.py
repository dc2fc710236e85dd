"""Which tokens carry loss, shown as text: on a terminal and as a page."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from rich.text import Text

from vitral.tokenizer.tokenizer import Tokenizer
from vitral.tune.batch import Row
from vitral.tune.data.load import Item

__all__ = ["BRACKETS", "Span", "as_page", "as_text", "spans"]

BRACKETS = "⟦⟧"  # in no vocabulary's common words, so that they are not taken for the text's own
_LOSS, _QUIET = "bold black on green", "dim"


@dataclass(frozen=True, slots=True)
class Span:
    """Consecutive tokens that all carry loss, or none of which does; `n` of them."""

    text: str
    supervised: bool
    n: int


def spans(row: Row, tokenizer: Tokenizer) -> list[Span]:
    """A row as text, cut where the loss begins and ends. Control tokens are spelled out; the texts join to the row's."""
    pieces = [(mark, tokenizer.token_bytes(id)) for id, mark in zip(row.ids, row.supervised, strict=True)]
    found: list[Span] = []
    for mark, group in groupby(pieces, key=lambda piece: piece[0]):
        parts = [part for _, part in group]
        found.append(Span(b"".join(parts).decode("utf-8", "replace"), mark, len(parts)))
    return found


def as_text(item: Item, tokenizer: Tokenizer, colours: bool = True) -> Iterator[Text]:
    """The rows of an item for a terminal: what carries loss stands on green, without colours between BRACKETS."""
    for row in item.rows:
        text = Text()
        for span in spans(row, tokenizer):
            shown = span.text if colours or not span.supervised else span.text.join(BRACKETS)
            text.append(shown, _LOSS if span.supervised else _QUIET)
        yield text


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem; color: #222; background: #fff }}
pre {{ white-space: pre-wrap; overflow-wrap: anywhere; border: 1px solid #ddd; border-radius: 6px; padding: .8rem; color: #555 }}
mark {{ background: #b6e3b6; color: #041; font-weight: 600 }}
h2 {{ font-size: 1rem; margin: 1.6rem 0 .3rem }} small {{ color: #666 }}
</style></head><body><h1>{title}</h1>
<p><mark>Marked</mark> tokens carry loss: the model learns to write them. All others are only read.</p>
{items}</body></html>
"""


def as_page(items: Sequence[Item], tokenizer: Tokenizer, title: str) -> str:
    """The same as an HTML page that needs nothing else. What the data holds is shown, never run."""
    parts: list[str] = []
    for item in items:
        for row in item.rows:
            body = "".join(
                f"<mark>{html.escape(span.text)}</mark>" if span.supervised else html.escape(span.text)
                for span in spans(row, tokenizer)
            )
            head = f"{html.escape(item.example.place)} <small>{row.n_supervised} of {len(row.ids)} tokens carry loss</small>"
            parts.append(f"<h2>{head}</h2><pre>{body}</pre>")
    return _PAGE.format(title=html.escape(title), items="\n".join(parts))
