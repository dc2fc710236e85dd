"""Two models side by side: which tensors, metadata, template and tokenizer entries differ, in whatever layout they are."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from vitral.errors import TokenizerError
from vitral.formats.canonical import Checkpoint
from vitral.formats.weights import Tensor
from vitral.tokenizer.load import load_tokenizer
from vitral.tokenizer.tokenizer import Tokenizer

__all__ = ["Difference", "compare", "tokenizer_in"]

_LONGEST = 120  # characters of a value that is shown
_MOST_ENTRIES = 1000


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that differs. `part`: architecture, tensor, metadata, tokenizer or template. None: it is not there.

    `relative` is the root mean square of the difference of a tensor's values over that of the values of `a`.
    """

    part: str
    name: str
    a: str | None
    b: str | None
    relative: float | None = None


def compare(
    a: Checkpoint, b: Checkpoint, progress: Callable[[int, int], object] | None = None
) -> tuple[Difference, ...]:
    """Every difference, in the order architecture, tensors, metadata, tokenizer, template.

    Metadata are compared where both have the same layout; between two layouts the architecture says what they mean.
    """
    found = [*_fields("architecture", asdict(a.spec), asdict(b.spec))]
    found += _tensors(a, b, progress)
    if a.layout == b.layout:
        skip = ("tokenizer.",)
        found += _fields("metadata", _without(a.metadata, skip), _without(b.metadata, skip))
    found += _tokenizers(tokenizer_in(a), tokenizer_in(b))
    return tuple(found)


def tokenizer_in(checkpoint: Checkpoint) -> Tokenizer | None:
    """The tokenizer of a checkpoint, None where it has none that can be read."""
    path = checkpoint.path
    try:
        if checkpoint.layout == "gguf":
            return load_tokenizer(checkpoint.metadata)
        return load_tokenizer(path if path.is_dir() else path.parent)
    except TokenizerError:
        return None


def _without(metadata: Mapping[str, Any], prefixes: tuple[str, ...]) -> dict[str, Any]:
    return {key: value for key, value in metadata.items() if not key.startswith(prefixes)}


def _fields(part: str, a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[Difference]:
    for name in sorted(a.keys() | b.keys()):
        ours, theirs = _shown(a.get(name)), _shown(b.get(name))
        if not _equal(a.get(name), b.get(name)):
            yield Difference(part, name, ours if name in a else None, theirs if name in b else None)


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return bool(np.array_equal(a, b))
    return bool(a == b)


def _shown(value: Any) -> str:
    text = " ".join(str(value.tolist() if isinstance(value, np.ndarray) else value).split())
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."


def _tensors(a: Checkpoint, b: Checkpoint, progress: Callable[[int, int], object] | None) -> Iterator[Difference]:
    names = sorted(a.weights.keys() | b.weights.keys())
    for done, name in enumerate(names, 1):
        ours, theirs = a.weights.tensors.get(name), b.weights.tensors.get(name)
        if ours is None or theirs is None or ours.shape != theirs.shape:
            yield Difference("tensor", name, _form(ours), _form(theirs))
        elif ours.digest() != theirs.digest():
            yield Difference("tensor", name, _form(ours), _form(theirs), _relative(ours, theirs))
        if progress is not None:
            progress(done, len(names))


def _form(tensor: Tensor | None) -> str | None:
    return None if tensor is None else f"{tensor.type.name} {tensor.shape}"


def _relative(a: Tensor, b: Tensor) -> float:
    ours, theirs = a.dequantize().astype(np.float64), b.dequantize().astype(np.float64)
    size = float(np.sqrt(np.square(ours).mean()))
    apart = float(np.sqrt(np.square(ours - theirs).mean()))
    return apart / size if size else float("inf") if apart else 0.0


def _tokenizers(a: Tokenizer | None, b: Tokenizer | None) -> Iterator[Difference]:
    if a is None or b is None:
        if a is not b:
            yield Difference("tokenizer", "vocabulary", _count(a), _count(b))
        return
    yield from _fields("tokenizer", _facts(a), _facts(b))
    ours, theirs = _entries(a), _entries(b)
    changed = [id for id in sorted(ours.keys() | theirs.keys()) if ours.get(id) != theirs.get(id)]
    for id in changed[:_MOST_ENTRIES]:
        yield Difference("tokenizer", f"id {id}", ours.get(id), theirs.get(id))
    if len(changed) > _MOST_ENTRIES:
        yield Difference("tokenizer", f"{len(changed) - _MOST_ENTRIES} more ids", "differ", "differ")
    for name in sorted(a.templates.keys() | b.templates.keys()):
        one, other = a.templates.get(name), b.templates.get(name)
        if one != other:
            yield from _template(name, one, other)


def _template(name: str, a: str | None, b: str | None) -> Iterator[Difference]:
    if a is None or b is None:
        yield Difference("template", name, None if a is None else "there", None if b is None else "there")
        return
    matcher = difflib.SequenceMatcher(None, a.splitlines(), b.splitlines(), autojunk=False)
    for kind, start, end, other_start, other_end in matcher.get_opcodes():
        if kind != "equal":
            ours, theirs = a.splitlines()[start:end], b.splitlines()[other_start:other_end]
            yield Difference(
                "template", f"{name}, line {start + 1}", "\n".join(ours) or None, "\n".join(theirs) or None
            )


def _count(tokenizer: Tokenizer | None) -> str | None:
    return None if tokenizer is None else f"{tokenizer.vocab_size} entries"


def _facts(tokenizer: Tokenizer) -> dict[str, Any]:
    names = ("vocab_size", "bos_id", "eos_id", "pad_id", "add_bos", "add_eos")
    return {name: getattr(tokenizer, name) for name in names} | {"eos_ids": sorted(tokenizer.eos_ids)}


def _entries(tokenizer: Tokenizer) -> dict[int, str]:
    return {id: ascii(tokenizer.piece(id)) for id in range(tokenizer.vocab_size)}
