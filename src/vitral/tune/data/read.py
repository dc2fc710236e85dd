"""Records out of files: JSONL, JSON, CSV, Parquet, plain text, and folders of them; each with its place."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vitral.errors import DataError

__all__ = ["Record", "SUFFIXES", "files_of", "read_records"]

Record = tuple[str, Any]
"""Where it stands (`file:line`, or `file:row`), and what it holds."""
SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt", ".md")
_LONGEST_LINE = 64 << 20  # bytes; a record longer than that is no training row


def files_of(path: Path) -> list[Path]:
    """The data files at a path, in the order of their names. Raises DataError where there is none."""
    if path.is_file():
        found = [path]
    else:
        found = sorted(file for file in path.rglob("*") if file.is_file() and file.suffix.lower() in SUFFIXES)
    if not found:
        what = "is empty of data files" if path.is_dir() else "does not exist"
        raise DataError(f"{path} {what}; wanted are files that end in {', '.join(SUFFIXES)}, or a folder of them")
    for file in found:
        if file.suffix.lower() not in SUFFIXES:
            raise DataError(f"{file} ends in {file.suffix or 'nothing'}; allowed: {', '.join(SUFFIXES)}")
    return found


def read_records(file: Path) -> Iterator[Record]:
    """The records of one file in order. A line that cannot be read yields a DataError in its place, not silence."""
    kind = file.suffix.lower()
    try:
        if kind == ".jsonl":
            yield from _lines(file)
        elif kind == ".json":
            yield from _document(file)
        elif kind in (".csv", ".tsv"):
            yield from _table(file, "\t" if kind == ".tsv" else ",")
        elif kind == ".parquet":
            yield from _parquet(file)
        else:
            yield f"{file.name}:1", {"text": file.read_text("utf-8")}
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8 at byte {error.start}; save it as UTF-8") from None


def _lines(file: Path) -> Iterator[Record]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            place = f"{file.name}:{number}"
            if len(line) > _LONGEST_LINE:
                yield place, DataError(f"a line of {len(line)} bytes; at most {_LONGEST_LINE} are read")
            elif line.strip():
                yield place, _parsed(line)


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        return DataError(f"not UTF-8 at byte {error.start}; save the file as UTF-8")
    except (ValueError, RecursionError) as error:
        return DataError(f"not JSON: {str(error)[:100]}")


def _document(file: Path) -> Iterator[Record]:
    value = _parsed(file.read_bytes())
    if isinstance(value, DataError):
        raise DataError(f"{file}: {value}")
    if not isinstance(value, list):
        raise DataError(f"{file} holds a {type(value).__name__}; a JSON data set is a list of objects (or use JSONL)")
    for number, record in enumerate(value, 1):
        yield f"{file.name}:{number}", record


def _table(file: Path, delimiter: str) -> Iterator[Record]:
    csv.field_size_limit(min(sys.maxsize, _LONGEST_LINE))
    with file.open(newline="", encoding="utf-8-sig") as text:
        reader = csv.DictReader(text, delimiter=delimiter, strict=True)
        try:
            if len(reader.fieldnames or ()) == 1 and ";" in (reader.fieldnames or ("",))[0]:
                raise DataError(
                    f"{file} has its columns divided by ;, wanted are commas: save it so, or as .tsv with tabs"
                )
            for record in reader:
                if None in record or None in record.values():
                    yield f"{file.name}:{reader.line_num}", DataError("another number of cells than the header has")
                else:
                    yield f"{file.name}:{reader.line_num}", record
        except csv.Error as error:
            raise DataError(f"{file}, line {reader.line_num}: {error}") from None


def _parquet(file: Path) -> Iterator[Record]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise DataError(f"{file}: Parquet needs pyarrow: pip install 'vitral[tune]'") from None
    try:
        number = 0
        for batch in ParquetFile(file).iter_batches(1024):
            for record in batch.to_pylist():
                number += 1
                yield f"{file.name}:{number}", record
    except ArrowException as error:
        raise DataError(f"{file} cannot be read as Parquet: {str(error)[:200]}") from None
