"""Whether an adapter was trained on the model that it is given to: what proves it, and what is a hint alone.

Shapes prove nothing: models of one size have equal ones. What our own adapters carry (`vitral.json`, or `vitral.record`
in a GGUF file) decides: the digest of the weights, that of their vectors, which every quantiser leaves as they are, and
the types. Other tools write a name (PEFT's `base_model_name_or_path`, GGUF's `general.base_model.*`); it can be any
text, and the same model has many.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from vitral.errors import TensorMismatch

if TYPE_CHECKING:  # a model is loaded without either
    from vitral.formats.adapters import Adapter
    from vitral.formats.canonical import Checkpoint

__all__ = ["Base", "BaseEvidence"]

Evidence = Literal["weights", "lineage", "vectors", "name", "none"]
_COPIES = ("convert", "quantise")  # the operations after which a model is still the same one
_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_SAYS_NOTHING = frozenset(
    ("adapter", "base", "chat", "checkpoint", "final", "ggml", "gguf", "instruct", "lora", "merged", "model", "models")
    + ("out", "output")
)


@dataclass(frozen=True, slots=True)
class BaseEvidence:
    """How it is known that an adapter is for a model.

    evidence: "weights" (trained on just these), "lineage" (these were converted or quantised from those), "vectors" (the
    same vectors, the matrices in other types), all three by digest; "name" (a weak hint), "none". `detail` says it.
    """

    evidence: Evidence
    detail: str

    @property
    def is_weak(self) -> bool:
        """Whether nothing but shapes and names speaks for it."""
        return self.evidence in ("name", "none")

    def as_dict(self) -> dict[str, str | bool]:
        """Plain data."""
        return {**asdict(self), "weak": self.is_weak}


class Base:
    """A model as adapters know it; what is costly is read when it is first needed, and once."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint

    def accept(self, adapter: Adapter) -> BaseEvidence:
        """What speaks for the adapter. Raises TensorMismatch, with both names, for one of another base."""
        said = adapter.trained_on
        if said.digest is None:
            return self._by_name(adapter)
        if said.vectors in (None, self.vectors):
            if said.digest == self.digest:
                return BaseEvidence("weights", f"trained on these weights, {said.digest[:12]}")
            if said.digest in self._sources:
                return BaseEvidence(
                    "lineage", f"these weights were made from {said.digest[:12]}, which it was trained on"
                )
            if said.vectors is not None and said.types != self.types:
                return BaseEvidence(
                    "vectors",
                    f"trained on weights {said.digest[:12]} in {', '.join(said.types)}; these, in "
                    f"{', '.join(self.types)}, have the same vectors",
                )
        raise TensorMismatch(
            f"{adapter.path} was trained on another base: {said.name or 'unnamed'}, weights {said.digest[:12]}; this model "
            f"is {self._own_name}, weights {self.digest[:12]}: load it over its own base, or one quantised from that"
        )

    @cached_property
    def digest(self) -> str:
        """Of all weights; they are read for it."""
        return self._checkpoint.weights.digest()

    @cached_property
    def vectors(self) -> str:
        """Of the vectors."""
        return self._checkpoint.weights.vectors_digest()

    @property
    def types(self) -> tuple[str, ...]:
        """Of the matrices."""
        return self._checkpoint.weights.matrix_types()

    @cached_property
    def _sources(self) -> frozenset[str]:
        """Digests of the weights that these were converted or quantised from, step by step."""
        from vitral.provenance.lineage import read_lineage  # cards and licence texts come with it; loading needs none

        found = []
        for step in reversed(read_lineage(self._checkpoint)):
            if step.operation not in _COPIES or len(step.base) != 1:
                break
            found.append(step.base[0].get("weights", ""))
        return frozenset(found) - {""}

    def _by_name(self, adapter: Adapter) -> BaseEvidence:
        said = adapter.trained_on.name
        theirs = _families(said.rpartition("/")[2]) if said is not None and _NAME.fullmatch(said) else frozenset()
        path = self._checkpoint.path
        ours = frozenset(family for name in (*self._names, path.stem, path.parent.name) for family in _families(name))
        if not theirs or not self._names:
            return BaseEvidence(
                "none", f"it fits by its shapes; its base is called {said!r}" if said else "it fits by its shapes alone"
            )
        if theirs & ours:
            return BaseEvidence(
                "name", f"its base is called {said!r}, this model {self._own_name}: names alone, no proof"
            )
        raise TensorMismatch(
            f"{adapter.path} names another base, {said!r}; this model is called {self._own_name}. A name is a weak hint "
            "and all that the adapter says: if the base is the same, put its base_model_name_or_path right"
        )

    @property
    def _own_name(self) -> str:
        return repr(self._names[0] if self._names else self._checkpoint.path.name)

    @cached_property
    def _names(self) -> tuple[str, ...]:
        """All that the model's own keys call it and its parents, if they say whose it is; what a path is called is chance."""
        metadata = self._checkpoint.metadata
        keys = [key for key in metadata if re.fullmatch(r"general\.(base_model\.\d+|source)\.(name|repo_url)", key)]
        texts = [metadata.get(key) for key in ("general.name", "general.basename", "_name_or_path", *keys)]
        return tuple(text for text in texts if isinstance(text, str) and _families(text))


def _families(name: str) -> frozenset[str]:
    """The words of a name that say whose model it is, without numbers, sizes and types.

    >>> sorted(_families("SmolLM2-135M-Instruct.Q4_1")), sorted(_families("Meta-Llama-3.1-8B-hf"))
    (['smollm'], ['llama', 'meta'])
    """
    words = re.split(r"[^a-z0-9]+", name.lower())
    stems = (
        re.sub(r"(v?\d+[bmk]?)+$", "", word) for word in words if not re.fullmatch(r"i?q\d\w*|b?f(p|loat)?\d+", word)
    )
    return frozenset(stem for stem in stems if len(stem) > 2 and stem not in _SAYS_NOTHING)
