"""A whole data set: read, parsed and encoded, with everything that is wrong with it gathered, not hidden."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from vitral.errors import DataError
from vitral.hub.data_sets import HubDataSet
from vitral.provenance.digest import sha256_of
from vitral.provenance.lineage import licence_beside
from vitral.tokenizer.tokenizer import Tokenizer
from vitral.tune.batch import Row
from vitral.tune.data.encode import Turns, encode
from vitral.tune.data.examples import Example, Plain
from vitral.tune.data.read import files_of, read_records
from vitral.tune.data.shapes import parse, shape_of

__all__ = ["DataFile", "DataSet", "Item", "TooLong", "load_data"]

TooLong = Literal["refuse", "drop", "cut"]


@dataclass(frozen=True, slots=True)
class Item:
    """An example and its rows: one, or two where an answer is compared with another."""

    example: Example
    rows: tuple[Row, ...]

    @property
    def n_tokens(self) -> int:
        """Ids of all its rows."""
        return sum(len(row.ids) for row in self.rows)


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file that was read. name: owner/name on the Hub, of which `path` then tells the commit; licence: what it says."""

    path: str
    sha256: str
    name: str = ""
    licence: str = ""


@dataclass(slots=True)
class DataSet:
    """The items, and what was found wrong: `problems` are (place, what) of records that cannot be used.

    `too_long` are (place, ids) of items over the context, counted whatever is done with them.
    """

    files: list[DataFile]
    shape: str
    items: list[Item] = field(default_factory=list)
    problems: list[tuple[str, str]] = field(default_factory=list)
    too_long: list[tuple[str, int]] = field(default_factory=list)

    def refuse(self) -> None:
        """Raise DataError if anything is wrong; the first three places are named, what is wrong there once, all are counted."""
        if self.problems:
            wrong: dict[str, list[str]] = {}
            for place, what in self.problems[:3]:
                wrong.setdefault(what, []).append(place)
            first = "; ".join(f"{', '.join(places)}: {what}" for what, places in wrong.items())
            more = f" ... and {len(self.problems) - 3} more" if len(self.problems) > 3 else ""
            raise DataError(
                f"{len(self.problems)} of {len(self.problems) + len(self.items)} records cannot be used: {first}{more}"
            )
        if not self.items:
            raise DataError(f"{', '.join(file.path for file in self.files)}: {self.why_empty}")

    @property
    def why_empty(self) -> str:
        """Why there is no item, where there is none and no problem either."""
        n = len(self.too_long)
        return f"all of its {n} records are over the context and were left out, as asked" if n else "no record at all"


def load_data(
    paths: Sequence[Path | HubDataSet],
    tokenizer: Tokenizer,
    context: int,
    *,
    turns: Turns = "all",
    too_long: TooLong = "refuse",
    chat: bool | None = None,
) -> DataSet:
    """Read data files, folders, and sets of the Hub. `chat` puts instructions into a chat; by default where there is a template.

    An item over `context` ids is a problem, or left out, or its answer is cut in the middle and keeps its end:
    `too_long` says which. Raises DataError for a file that cannot be read at all, TemplateError for a template
    that cannot be trained with.
    """
    as_chat = tokenizer.chat_template is not None if chat is None else chat
    files = [each for path in paths for each in _files(path)]
    found = DataSet([known for _, known in files], "")
    for file, _ in files:
        for place, record in read_records(file):
            try:
                if isinstance(record, DataError):
                    raise record
                found.shape = found.shape or shape_of(record)
                example = parse(place, record, found.shape, as_chat)
                rows = tuple(encode(example, tokenizer, turns, context))
                for item in _windows(example, rows, tokenizer) if isinstance(example, Plain) else [Item(example, rows)]:
                    _take(found, item, context, too_long)
            except DataError as error:
                found.problems.append((place, str(error)))
    return found


def _windows(text: Plain, rows: tuple[Row, ...], tokenizer: Tokenizer) -> list[Item]:
    """Each window of a long text is an item of its own: shuffled, held out and cut into steps like any other."""
    if len(rows) <= 1:
        return [Item(text, rows)]
    return [
        Item(Plain(f"{text.place}, window {n}", tokenizer.decode(row.ids, skip_special=True)), (row,))
        for n, row in enumerate(rows, 1)
    ]


def _take(found: DataSet, item: Item, context: int, too_long: TooLong) -> None:
    longest = max((len(row.ids) for row in item.rows), default=0)
    if not item.rows or any(row.n_supervised == 0 for row in item.rows):
        raise DataError("no token would carry loss")
    if longest > context:
        found.too_long.append((item.example.place, longest))
        if too_long == "refuse":
            raise DataError(
                f"{longest} tokens; the context of the run is {context} (raise it, or say too_long = drop or cut)"
            )
        if too_long == "drop":
            return
        item = Item(item.example, tuple(_cut(row, context) for row in item.rows))
    found.items.append(item)


def _cut(row: Row, context: int) -> Row:
    """Take ids out of the end of the row but keep its last supervised one, which says that the answer ends."""
    if len(row.ids) <= context:
        return row
    last = max(place for place, mark in enumerate(row.supervised) if mark)
    kept = [*range(context - 1), last]
    if not any(row.supervised[place] for place in kept[:-1]):
        raise DataError(
            f"{len(row.ids)} tokens, and the prompt alone fills the context of {context}: nothing of the answer is left"
        )
    return Row(tuple(row.ids[p] for p in kept), tuple(row.supervised[p] for p in kept))


def _files(source: Path | HubDataSet) -> list[tuple[Path, DataFile]]:
    if isinstance(source, HubDataSet):
        label = f"hf:{source.repo}@{source.revision}"
        return [
            (path, DataFile(f"{label}:{file}", sha256_of(path), source.repo, source.licence))
            for file, path in source.files.items()
        ]
    licence = licence_beside(source)
    return [(file, DataFile(str(file), sha256_of(file), licence=licence)) for file in files_of(source)]
