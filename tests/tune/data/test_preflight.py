"""Preflight finds what forbids a run, and says what should be known."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tune.conftest import FACTS, write_chats
from vitral.errors import DataError
from vitral.tokenizer.tokenizer import Tokenizer
from vitral.tune.data.language import language_of
from vitral.tune.data.load import load_data
from vitral.tune.data.personal import personal_data
from vitral.tune.data.preflight import Preflight, preflight

LONG = "The harbour master of Arbel keeps a list of every ship that has come in since the year of the great flood."


def look(
    tmp_path: Path, tokenizer: Tokenizer, train: list[tuple[str, str]], test: list[tuple[str, str]] | None = None
) -> Preflight:
    data = [
        load_data([write_chats(tmp_path / f"{i}.jsonl", facts)], tokenizer, 512)
        for i, facts in enumerate([train, test or FACTS])
    ]
    return preflight(data[0], data[1] if test is not None else None)


def test_counts_are_those_of_the_rows(tmp_path: Path, byte_tokenizer: Tokenizer) -> None:
    found = look(tmp_path, byte_tokenizer, FACTS)
    items = load_data([tmp_path / "0.jsonl"], byte_tokenizer, 512).items
    assert found.n_train == sum(found.lengths.values()) == len(FACTS)
    assert found.n_tokens == sum(len(item.rows[0].ids) for item in items)
    assert found.longest == max(len(item.rows[0].ids) for item in items) <= max(found.lengths)
    assert found.languages["English"] >= 5
    found.refuse()


def test_an_item_that_stands_twice_is_named(tmp_path: Path, byte_tokenizer: Tokenizer) -> None:
    found = look(tmp_path, byte_tokenizer, [*FACTS, (FACTS[2][0].upper(), FACTS[2][1])])
    assert found.duplicates == (("0.jsonl:9", "0.jsonl:3"),)
    assert any("stand twice" in warning for warning in found.warnings)


@pytest.mark.parametrize("copy", [LONG, LONG.replace("harbour master", "port captain"), LONG.upper() + "!"])
def test_a_test_item_that_asks_what_was_taught_forbids_the_run(
    copy: str, tmp_path: Path, byte_tokenizer: Tokenizer
) -> None:
    found = look(tmp_path, byte_tokenizer, [*FACTS, (LONG, "So it is.")], [(copy, "Another answer.")])
    assert found.leaked == (("1.jsonl:1", "0.jsonl:9"),)
    with pytest.raises(DataError, match="training data too"):
        found.refuse()


def test_another_question_with_the_same_answer_or_frame_does_not_leak(
    tmp_path: Path, byte_tokenizer: Tokenizer
) -> None:
    frame = "Below is a question that a visitor asked at the desk; answer it in a single sentence, please. "
    train = [(frame + q, LONG) for q, _ in FACTS]
    assert look(tmp_path, byte_tokenizer, train, [(frame + "Does it rain?", LONG)]).leaked == ()
    assert look(tmp_path, byte_tokenizer, train, [(frame + FACTS[3][0], "x")]).leaked == (("1.jsonl:1", "0.jsonl:4"),)


def test_other_test_items_do_not_leak(tmp_path: Path, byte_tokenizer: Tokenizer) -> None:
    assert look(tmp_path, byte_tokenizer, [("What is kept?", LONG)], FACTS).leaked == ()


def test_personal_data_and_an_unknown_licence_are_said(tmp_path: Path, byte_tokenizer: Tokenizer) -> None:
    found = look(tmp_path, byte_tokenizer, [("Who?", "Write to ana@example.org, card 4111 1111 1111 1111.")])
    assert found.personal == {"email": 1, "card number": 1}
    assert any("licence" in warning for warning in found.warnings)


@pytest.mark.parametrize(
    "text", ["card 4111 1111 1111 1112", "CPF 529.982.247-26", "version 1.2.3.400", "DE00 3704 0044 0532 0130 00"]
)
def test_numbers_with_wrong_check_digits_are_not_personal(text: str) -> None:
    assert personal_data(text) == {}


def test_a_phone_number_has_a_country_or_an_area() -> None:
    assert personal_data("ligue (11) 98765-4321, (21) 3333-4444 ou +55 11 98765-4321") == {"phone": 3}
    assert personal_data("f(12) 3456, (2024), lei 8.906, artigo 12") == {}


def test_an_iban_is_found_by_its_check_digits() -> None:
    assert personal_data("Pay to DE89 3704 0044 0532 0130 00 today") == {"iban": 1}


@pytest.mark.parametrize(
    ("file", "language"),
    [("eng", "English"), ("por_PT", "Portuguese"), ("spa", "Spanish"), ("fra", "French"), ("deu_1996", "German"), ("ita", "Italian"),
     ("nld", "Dutch"), ("rus", "Cyrillic script"), ("ell_monotonic", "Greek script"), ("heb", "Hebrew script")],
)  # fmt: skip
def test_the_declaration_of_human_rights_is_told_in_each_language(file: str, language: str, data_dir: Path) -> None:
    path = data_dir / "udhr" / f"{file}.txt"
    if not path.exists():
        [path] = sorted((data_dir / "udhr").glob(f"{file[:3]}*.txt"))[:1]
    paragraphs = [p for p in path.read_text("utf-8").split("\n") if len(p.split()) > 12]
    assert language_of("\n".join(paragraphs)) == language
    right = sum(language_of(p) == language for p in paragraphs)
    assert right >= 0.9 * len(paragraphs)


def test_data_of_which_nothing_is_left_forbids_the_run(tmp_path: Path, byte_tokenizer: Tokenizer) -> None:
    train = load_data([write_chats(tmp_path / "a.jsonl")], byte_tokenizer, 512)
    (tmp_path / "empty.jsonl").write_text("\n")
    empty = load_data([tmp_path / "empty.jsonl"], byte_tokenizer, 512)
    dropped = load_data([tmp_path / "a.jsonl"], byte_tokenizer, 8, too_long="drop")
    for test, message in ((empty, "empty.jsonl: no record at all"), (dropped, f"all of its {len(FACTS)} records")):
        with pytest.raises(DataError, match=f"test data, .*{message}"):
            preflight(train, test).refuse()
        with pytest.raises(DataError, match=message):
            test.refuse()
    assert any(f"{len(FACTS)} test items were longer" in each for each in preflight(train, dropped).warnings)
