"""Records of every shape become examples; what does not fit is refused with the reason."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from vitral.errors import DataError
from vitral.tokenizer.tokenizer import Tokenizer
from vitral.tune.data.examples import Chat, Continuation, Pair, Plain, Rated, Task
from vitral.tune.data.load import load_data
from vitral.tune.data.read import files_of, read_records
from vitral.tune.data.shapes import SHAPES, parse, shape_of

U, A = {"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Yes."}
RECORDS: dict[str, list[dict[str, Any]]] = {
    "messages": [{"messages": [U, A]}, {"messages": [{"role": "system", "content": "Be kind."}, U, A, U, A]}],
    "sharegpt": [{"conversations": [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Yes."}]}],
    "alpaca": [
        {"instruction": "Add.", "input": "1 1", "output": "2"},
        {"instruction": "Hi?", "input": "", "output": "Yes."},
    ],
    "completion": [{"prompt": "Hi?", "completion": "Yes."}, {"prompt": "Hi?", "response": "Yes."}],
    "text": [{"text": "All of this is learnt."}],
    "pairs": [
        {"prompt": "Hi?", "chosen": "Yes.", "rejected": "No."},
        {"chosen": [U, A], "rejected": [U, {**A, "content": "No."}]},
    ],
    "rated": [
        {"prompt": "Hi?", "completion": "Yes.", "label": True},
        {"prompt": [U], "completion": "No.", "label": "bad"},
    ],
    "task": [{"question": "2 + 2?", "answer": "4"}, {"prompt": [U], "answer": "Yes."}],
}
KINDS = {
    "messages": Chat,
    "sharegpt": Chat,
    "alpaca": Chat,
    "completion": Chat,
    "text": Plain,
    "pairs": Pair,
    "rated": Rated,
    "task": Task,
}


def test_every_shape_has_a_test() -> None:
    assert set(RECORDS) == set(SHAPES)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_record_becomes_its_example(shape: str) -> None:
    for record in RECORDS[shape]:
        assert shape_of(record) == shape
        assert type(parse("a:1", record, shape, True)) is KINDS[shape]


def test_without_a_chat_an_instruction_is_continued_as_text() -> None:
    found = parse("a:1", RECORDS["alpaca"][0], "alpaca", False)
    assert found == Continuation("a:1", "Add.\n\n1 1", "2")


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ([1], "a list"),
        ({"foo": 1}, "foo fit no shape"),
        ({"messages": []}, "at least one"),
        ({"messages": "Hi"}, "must end it"),
        ({"messages": [U]}, "must end it"),
        ({"messages": [A, U, A]}, "user's turn must begin"),
        ({"messages": [U, U, A]}, "alternate"),
        ({"messages": [U, {"role": "bot", "content": "x"}]}, "'bot'"),
        ({"messages": [U, {"role": "assistant", "content": "  "}]}, "turn 2 .* no text"),
        ({"messages": [U, {"role": "assistant", "content": 7}]}, "no text"),
        ({"messages": [U, A, {"role": "system", "content": "x"}]}, "only be the first"),
        ({"conversations": [{"from": "alien", "value": "x"}]}, "alien"),
        ({"conversations": [{"value": "x"}]}, "from and value"),
        ({"instruction": "x", "output": ""}, "output is empty"),
        ({"prompt": "x", "completion": 3}, "a int"),
        ({"prompt": "x", "chosen": "a", "rejected": "a"}, "same answer"),
        ({"chosen": "a", "rejected": "b"}, "without a prompt"),
        ({"chosen": [U, A], "rejected": [{**U, "content": "Other?"}, A]}, "differ before"),
        ({"prompt": "x", "completion": "y", "label": "maybe"}, "maybe"),
        ({"prompt": [U, A], "answer": "x"}, "what is to be answered"),
    ],
)  # fmt: skip
def test_a_record_that_does_not_fit_is_refused_with_the_reason(record: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        parse("a:1", record, shape_of(record), True)


def write(folder: Path, suffix: str, records: list[dict[str, Any]]) -> Path:
    path = folder / f"data{suffix}"
    if suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, records)) + "\n\n")
    elif suffix == ".json":
        path.write_text(json.dumps(records))
    elif suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(records), path)
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(records[0]), delimiter="\t" if suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(records)
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".tsv", ".parquet"])
def test_every_kind_of_file_gives_the_same_records(suffix: str, tmp_path: Path) -> None:
    records = [{"prompt": 'a "quoted", line\nand another', "completion": "é ü"}, {"prompt": "b", "completion": "c"}]
    path = write(tmp_path, suffix, records)
    assert [record for _, record in read_records(path)] == records


def test_a_folder_gives_its_files_in_order(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "sub/c.md", "ignored.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("A text.")
    assert [file.name for file in files_of(tmp_path)] == ["a.txt", "b.txt", "c.md"]


@pytest.mark.parametrize(("name", "content"), [("a.exe", b"x"), ("a.json", b"{}"), ("a.json", b"[1"), ("a.parquet", b"PAR1 no"),
                                               ("a.txt", b"\xff\xfe"), ("a.json", b"\xff\xfe[\x00]\x00"), ("a.csv", b'a,b\n"x')])  # fmt: skip
def test_a_file_that_cannot_be_read_is_refused_by_name(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=name):
        for file in files_of(tmp_path / name):
            list(read_records(file))


def test_bad_lines_are_gathered_with_their_numbers_and_refused(tmp_path: Path, byte_tokenizer: Tokenizer) -> None:
    lines = [
        json.dumps({"messages": [U, A]}),
        "{not json",
        json.dumps({"messages": [U]}),
        "",
        json.dumps({"text": "x"}),
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    found = load_data([tmp_path / "a.jsonl"], byte_tokenizer, 200)
    assert [place for place, _ in found.problems] == ["a.jsonl:2", "a.jsonl:3", "a.jsonl:5"]
    assert len(found.items) == 1
    with pytest.raises(DataError, match=r"3 of 4 records .* a\.jsonl:2: not JSON"):
        found.refuse()


def test_deep_nesting_and_missing_cells_are_lines_that_cannot_be_used(
    tmp_path: Path, byte_tokenizer: Tokenizer
) -> None:
    (tmp_path / "a.jsonl").write_text("[" * 100_000 + "\n")
    (tmp_path / "b.csv").write_text("prompt,completion\nonly one\n")
    for name in ("a.jsonl", "b.csv"):
        with pytest.raises(DataError, match=name.replace(".", r"\.")):
            load_data([tmp_path / name], byte_tokenizer, 200).refuse()


def test_a_line_in_another_encoding_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "ol\xc3\xa1"}\n{"text": "ol\xe1"}\n')
    (_, first), (place, second) = read_records(tmp_path / "a.jsonl")
    assert first == {"text": "olá"}
    assert place == "a.jsonl:2" and isinstance(second, DataError) and "not UTF-8 at byte 12" in str(second)
