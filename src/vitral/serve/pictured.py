"""What the worker keeps of a text that is to become a document of `vitral inspect`, and how much that may be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vitral.engine.interventions import Intervention
from vitral.errors import RequestError
from vitral.language_model import LanguageModel
from vitral.lens.inspect import document_of, unembedding_of
from vitral.lens.readout import Reader
from vitral.serve.engines import Ask

__all__ = ["MOST_BYTES", "Pictured"]

MOST_BYTES = 256 << 20
"""Of one text's values, twice where it is read under interventions too."""


class Pictured:
    """Collects a text's values, one reading after another; `document`, on any thread, reduces them.

    RequestError for more than `MOST_BYTES`.
    """

    def __init__(self, model: LanguageModel, ask: Ask) -> None:
        assert ask.picture is not None, "only what is pictured is collected here"
        spec, n = model.spec, len(ask.prompt)
        readings = 2 if ask.interventions else 1
        closely = n - ask.picture.start
        each = spec.dim * (3 * spec.n_layers + 1) + spec.n_layers * spec.n_heads * spec.head_dim
        n_bytes = 4 * readings * (n * spec.vocab_size + closely * each)
        if n_bytes > MOST_BYTES:
            raise RequestError(
                f"a document of {n} tokens, {closely} in its window, takes {n_bytes >> 20} MiB on the way; allowed: "
                f"{MOST_BYTES >> 20} MiB; give a shorter text or a smaller window, or use vitral inspect"
            )
        self.ask = ask
        self._model, self._picture = model, ask.picture
        self._wanted: list[tuple[Intervention, ...]] = [(), ask.interventions][:readings]
        self._readers: list[Reader] = []

    def next(self) -> tuple[Reader, Sequence[Intervention]] | None:
        """Who collects the next reading, and what changes it; None after the last."""
        if len(self._readers) == len(self._wanted):
            return None
        self._readers.append(Reader(self._model.spec, len(self.ask.prompt), self._picture.start))
        return self._readers[-1], self._wanted[len(self._readers) - 1]

    def document(self) -> dict[str, Any]:
        """Once all was read."""
        model, ids, start = self._model, self.ask.prompt, self._picture.start
        top, unembedding = min(self._picture.top, model.spec.vocab_size), unembedding_of(model)
        plain, *more = self._readers
        found = plain.readout(model, unembedding, top)
        changed = more[0].readout(model, unembedding, top, found.targets) if more else None
        return document_of(
            model, ids, found, changed, self.ask.interventions, name="", n_prompt=len(ids), start=start, top=top
        )
