"""Loss lies on exactly what the model will have to say when served, its end included."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tune.conftest import CHATML, write_chats, write_tiny
from vitral.errors import DataError, TemplateError
from vitral.formats.checkpoint import open_checkpoint
from vitral.loading import tokenizer_of
from vitral.tokenizer.chat import built_in, built_in_names
from vitral.tokenizer.tokenizer import Tokenizer
from vitral.tune.batch import Row
from vitral.tune.data.encode import encode, prompt_ids
from vitral.tune.data.examples import Chat, Continuation, Pair, Plain
from vitral.tune.data.load import load_data
from vitral.tune.preview import as_page, spans

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "One?"},
    {"role": "assistant", "content": "First <|im_end|> answer."},
    {"role": "user", "content": "Two?"},
    {"role": "assistant", "content": "Second."},
]


def learnt(row: Row, tokenizer: Tokenizer) -> list[str]:
    return [span.text for span in spans(row, tokenizer) if span.supervised]


def test_both_answers_and_their_ends_carry_loss_and_nothing_else(byte_tokenizer: Tokenizer) -> None:
    [row] = encode(Chat("a:1", tuple(TALK)), byte_tokenizer)
    assert learnt(row, byte_tokenizer) == ["First <|im_end|> answer.<|im_end|>", "Second.<|im_end|>"]
    end = byte_tokenizer.eos_id
    assert [mark for id, mark in zip(row.ids, row.supervised) if id == end] == [False, False, True, False, True]


def test_the_last_turn_alone(byte_tokenizer: Tokenizer) -> None:
    [row] = encode(Chat("a:1", tuple(TALK)), byte_tokenizer, turns="last")
    assert learnt(row, byte_tokenizer) == ["Second.<|im_end|>"]


def test_what_is_read_before_an_answer_is_what_the_server_reads(byte_tokenizer: Tokenizer) -> None:
    [row] = encode(Chat("a:1", tuple(TALK[:3])), byte_tokenizer)
    served = prompt_ids(TALK[:2], byte_tokenizer)
    assert list(row.ids[: row.supervised.index(True)]) == served


def test_a_real_model_of_another_template_is_masked_as_well(smollm2: Path) -> None:
    tokenizer = tokenizer_of(open_checkpoint(smollm2))
    [row] = encode(Chat("a:1", tuple(TALK)), tokenizer)
    assert learnt(row, tokenizer) == ["First <|im_end|> answer.<|im_end|>", "Second.<|im_end|>"]


def test_a_template_that_does_not_close_the_turn_is_refused(tmp_path: Path) -> None:
    open_ended = CHATML.replace("+ '<|im_end|>' + '\n' ", "+ '\n' ")
    tokenizer = tokenizer_of(open_checkpoint(write_tiny(tmp_path / "a.gguf", template=open_ended)))
    with pytest.raises(TemplateError, match="never stop"):
        encode(Chat("a:1", tuple(TALK[1:3])), tokenizer)


def test_a_template_that_rewrites_earlier_turns_is_refused_unless_the_last_alone_is_learnt(tmp_path: Path) -> None:
    forgetful = CHATML.replace("{% for m in messages %}", "{% for m in messages[-2:] %}")
    tokenizer = tokenizer_of(open_checkpoint(write_tiny(tmp_path / "a.gguf", template=forgetful)))
    with pytest.raises(DataError, match="last"):
        encode(Chat("a:1", tuple(TALK[1:])), tokenizer)


@pytest.mark.parametrize("name", [n for n in built_in_names() if n in ("chatml", "llama3")])
def test_our_own_templates_close_the_turn(name: str, byte_tokenizer: Tokenizer) -> None:
    tokenizer = byte_tokenizer.with_templates({"default": built_in(name)})
    if name == "llama3":  # its control tokens are plain text for this vocabulary, so nothing ends the turn
        with pytest.raises(TemplateError, match="never stop"):
            encode(Chat("a:1", tuple(TALK[1:3])), tokenizer)
    else:
        [row] = encode(Chat("a:1", tuple(TALK[1:3])), tokenizer)
        assert learnt(row, tokenizer) == ["First <|im_end|> answer.<|im_end|>"]


def test_a_continuation_is_learnt_from_where_it_begins(byte_tokenizer: Tokenizer) -> None:
    [row] = encode(Continuation("a:1", "2 + 2 =", " 4"), byte_tokenizer)
    assert learnt(row, byte_tokenizer) == [" 4<|im_end|>"]


def test_a_pair_is_two_rows_of_one_prompt(byte_tokenizer: Tokenizer) -> None:
    rows = encode(Pair("a:1", (TALK[1],), "Good.", "Bad."), byte_tokenizer)
    assert [learnt(row, byte_tokenizer) for row in rows] == [["Good.<|im_end|>"], ["Bad.<|im_end|>"]]
    begin = rows[0].supervised.index(True)
    assert rows[0].ids[:begin] == rows[1].ids[:begin]


def test_a_long_text_goes_on_in_windows_that_learn_every_token_but_the_first_once(byte_tokenizer: Tokenizer) -> None:
    text = "".join(chr(33 + i % 80) for i in range(95))
    rows = encode(Plain("a:1", text), byte_tokenizer, context=20)
    assert max(len(row.ids) for row in rows) <= 20
    whole = [*byte_tokenizer.encode(text), byte_tokenizer.eos_id]
    assert [id for row in rows for id, mark in zip(row.ids, row.supervised) if mark] == whole[1:]


@pytest.mark.parametrize("too_long", ["refuse", "drop", "cut"])
def test_rows_over_the_context_are_refused_unless_told_otherwise(
    too_long: str, tmp_path: Path, byte_tokenizer: Tokenizer
) -> None:
    data = write_chats(tmp_path / "a.jsonl", [("Short?", "Yes."), ("Long?", "x" * 200)])
    found = load_data([data], byte_tokenizer, 120, too_long=too_long)  # type: ignore[arg-type]
    [(place, length)] = found.too_long
    assert place == "a.jsonl:2" and length > 200
    assert len(found.items) == (2 if too_long == "cut" else 1)
    assert bool(found.problems) == (too_long == "refuse")
    if too_long == "cut":
        row = found.items[1].rows[0]
        assert len(row.ids) == 120
        assert row.ids[-1] == byte_tokenizer.eos_id and row.supervised[-1]


def test_a_prompt_that_fills_the_context_cannot_be_cut(tmp_path: Path, byte_tokenizer: Tokenizer) -> None:
    data = write_chats(tmp_path / "a.jsonl", [("x" * 200, "Yes.")])
    with pytest.raises(DataError, match="nothing of the answer is left"):
        load_data([data], byte_tokenizer, 100, too_long="cut").refuse()


def test_the_page_shows_all_of_the_text_and_runs_none_of_it(tmp_path: Path, byte_tokenizer: Tokenizer) -> None:
    data = write_chats(tmp_path / "a.jsonl", [("<script>alert(1)</script>?", "<b>No.</b>")])
    page = as_page(load_data([data], byte_tokenizer, 200).items, byte_tokenizer, "a & b")
    assert "<script>" not in page and "<b>" not in page
    assert "<mark>&lt;b&gt;No.&lt;/b&gt;&lt;|im_end|&gt;</mark>" in page


@pytest.mark.parametrize(("ids", "marks"), [((), ()), ((1,), (True,)), ((1, 2), (False,))])
def test_a_row_that_cannot_be_learnt_from_is_no_row(ids: tuple[int, ...], marks: tuple[bool, ...]) -> None:
    with pytest.raises(ValueError, match="token|mark"):
        Row(ids, marks)


def test_each_window_of_a_long_text_is_an_item_of_its_own(byte_tokenizer: Tokenizer, tmp_path: Path) -> None:
    """A book is many items: a step takes some of its windows, not all of it at once."""
    (tmp_path / "book.txt").write_text("The heron waits by the weir. " * 40)
    found = load_data([tmp_path / "book.txt"], byte_tokenizer, 50)
    assert len(found.items) > 10 and not found.problems
    assert all(len(item.rows) == 1 and item.n_tokens <= 50 for item in found.items)
    assert found.items[1].example.place == "book.txt:1, window 2"
