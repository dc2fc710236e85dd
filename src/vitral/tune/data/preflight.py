"""What is known of the data before the first step, and what forbids it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from vitral.errors import DataError
from vitral.provenance.datasets import data_set
from vitral.tune.data.examples import Example, question_of, text_of
from vitral.tune.data.language import language_of
from vitral.tune.data.load import DataFile, DataSet
from vitral.tune.data.personal import personal_data

__all__ = ["Preflight", "preflight"]

_SHINGLE = 8  # words in a row that a near copy shares
_NEAR = 0.5  # share of a test item's shingles found in one training item


@dataclass(frozen=True)
class Preflight:
    """The facts, in counts; `problems` forbid the run, `warnings` do not.

    `lengths` maps upper bounds (powers of two) to items of at most so many ids. `leaked` are pairs of
    places (test, training) with the same or nearly the same text.
    """

    n_train: int
    n_test: int
    n_tokens: int
    n_supervised: int
    lengths: Mapping[int, int]
    longest: int
    too_long: int
    duplicates: tuple[tuple[str, str], ...]
    leaked: tuple[tuple[str, str], ...]
    languages: Mapping[str, int]
    personal: Mapping[str, int]
    problems: tuple[str, ...] = field(default=())
    warnings: tuple[str, ...] = field(default=())

    def refuse(self) -> None:
        """Raise DataError with all problems in one line, if there are any."""
        if self.problems:
            raise DataError("; ".join(self.problems))


def preflight(train: DataSet, test: DataSet | None = None, *, licence: str = "") -> Preflight:
    """Look at all of the data; `licence` is what the recipe says of it. Nothing raises here; `Preflight.refuse` and `DataSet.refuse` do."""
    items = train.items
    texts = [text_of(item.example) for item in items]
    duplicates = _duplicates([item.example for item in items], texts)
    leaked = _leaked(train, test) if test is not None else ()
    personal = sum((Counter(personal_data(text)) for text in texts), Counter())
    lengths = [max(len(row.ids) for row in item.rows) for item in items]
    problems: list[str] = []
    warnings: list[str] = []
    for name, data in (("training", train), ("test", test)):
        if data is not None and data.problems:
            problems.append(
                f"{len(data.problems)} {name} records cannot be used, first {data.problems[0][0]}: {data.problems[0][1]}"
            )
    if test is not None and not test.items and not test.problems:
        problems.append(f"the test data, {', '.join(file.path for file in test.files)}: {test.why_empty}")
    if leaked:
        problems.append(f"{len(leaked)} test items are in the training data too, first {leaked[0][0]} = {leaked[0][1]}")
    if duplicates:
        warnings.append(f"{len(duplicates)} items stand twice, first {duplicates[0][0]} = {duplicates[0][1]}")
    if personal:
        warnings.append("personal data: " + ", ".join(f"{count} x {kind}" for kind, count in personal.items()))
    for name, data in (("training", train), ("test", test)):
        if data is not None and data.too_long and not data.problems:
            warnings.append(
                f"{len(data.too_long)} {name} items were longer than the context and left out or cut, as asked"
            )
    warnings += _of_licences([*train.files, *(test.files if test is not None else [])], licence)
    return Preflight(
        n_train=len(items),
        n_test=len(test.items) if test is not None else 0,
        n_tokens=sum(item.n_tokens for item in items),
        n_supervised=sum(row.n_supervised for item in items for row in item.rows),
        lengths=_histogram(lengths),
        longest=max(lengths, default=0),
        too_long=len(train.too_long),
        duplicates=duplicates,
        leaked=leaked,
        languages=dict(Counter(map(language_of, texts)).most_common()),
        personal=dict(personal),
        problems=tuple(problems),
        warnings=tuple(warnings),
    )


def _of_licences(files: Sequence[DataFile], said: str) -> list[str]:
    """What should be known of the data's licences: none known, another than its card's, or a model that wrote it."""
    found: dict[str, None] = {}
    for file in files:
        name = file.name or file.path.rsplit("/", 1)[-1]
        if not said and not file.licence:
            found["the licence of the data is not known; name it in the recipe (data.licence)"] = None
        if said and file.licence and file.licence.lower() != said.lower():
            found[
                f"the recipe says that the data is under {said}; {name} itself says {file.licence}, which is recorded"
            ] = None
        known = data_set(file.name) if file.name else None
        if known is not None and known.writer:
            found[
                f"{name} was written by {known.writer}, under terms ({known.written_by}) that may bind what learns from it"
            ] = None
    return list(found)


def _histogram(lengths: Sequence[int]) -> dict[int, int]:
    bounds = Counter(1 << max(n - 1, 1).bit_length() for n in lengths)
    return dict(sorted(bounds.items()))


def _normal(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def _duplicates(examples: Sequence[Example], texts: Sequence[str]) -> tuple[tuple[str, str], ...]:
    first: dict[str, str] = {}
    found: list[tuple[str, str]] = []
    for example, text in zip(examples, texts, strict=True):
        before = first.setdefault(_normal(text), example.place)
        if before != example.place:
            found.append((example.place, before))
    return tuple(found)


def _leaked(train: DataSet, test: DataSet) -> tuple[tuple[str, str], ...]:
    """Test items that ask what a training item asks: the same text, or half of its runs of eight words.

    Runs that many training items share (a system prompt, an instruction around every question) say nothing.
    The answers are not compared: other questions may well have the same one.
    """
    asked = [question_of(item.example) for item in train.items]
    same = {_normal(text): number for number, text in enumerate(asked)}
    index: dict[str, set[int]] = {}
    for number, text in enumerate(asked):
        for shingle in _shingles(text):
            index.setdefault(shingle, set()).add(number)
    common = max(2, len(asked) // 50)
    found: list[tuple[str, str]] = []
    for item in test.items:
        text = question_of(item.example)
        found_at = same.get(_normal(text))
        if found_at is None:
            telling = [shingle for shingle in _shingles(text) if len(index.get(shingle, ())) <= common]
            hits = Counter(n for shingle in telling for n in index.get(shingle, ())).most_common(1)
            if hits and hits[0][1] >= _NEAR * len(telling):
                found_at = hits[0][0]
        if found_at is not None:
            found.append((item.example.place, train.items[found_at].example.place))
    return tuple(found)


def _shingles(text: str) -> set[str]:
    words = _normal(text).split()
    return {" ".join(words[i : i + _SHINGLE]) for i in range(max(len(words) - _SHINGLE + 1, 1))}
