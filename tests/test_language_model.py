from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.engine.doubles import HashForward
from tests.parity.families import FAMILIES
from vitral.engine.forward import Batch
from vitral.errors import ContextOverflow, NumericalError, RequestError
from vitral.language_model import LanguageModel
from vitral.model.law import F32
from vitral.tokenizer.stream import SpaceRule, TextStream

END = 256
SPEC = replace(FAMILIES["llama-2"], vocab_size=END + 1)


class ByteTokenizer:
    """Ids are bytes; 256 ends the text."""

    eos_ids = special_ids = frozenset({END})
    vocab_size = END + 1
    space = SpaceRule.NEVER

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def encode_chat(
        self, messages: Sequence[Mapping[str, Any]], template: str | None = None, tools: Any = None
    ) -> list[int]:
        assert template in (None, "ours")
        return self.encode("".join(f"{m['role']}:{m['content']};" for m in messages))

    def token_bytes(self, id: int) -> bytes:
        return bytes([id]) if id < END else b"<end>"

    def is_special(self, id: int) -> bool:
        return id == END

    def stream(self, *, continuing: bool = False) -> TextStream:
        return TextStream(self, SpaceRule.NEVER, continuing=continuing)


class ScriptForward(HashForward):
    """Says what the script says, whatever the prompt, from the first position behind it on."""

    def __init__(self, script: bytes, prompt_length: int) -> None:
        super().__init__(vocab_size=END + 1)
        self.script = [*script, END, END, END, END]
        self.prompt_length = prompt_length

    def __call__(self, batch: Batch) -> F32:
        logits = super().__call__(batch)
        logits[:] = np.arange(END + 1, dtype=np.float32) / 1000
        for row, token in enumerate(batch.wanted.tolist()):
            place = int(batch.positions[token]) - self.prompt_length + 1
            if place >= 0:
                logits[row, self.script[place]] = 9
        return logits


def hashed(**options: Any) -> LanguageModel:
    return LanguageModel(
        SPEC,
        ByteTokenizer(),  # type: ignore[arg-type]
        HashForward(vocab_size=END + 1),
        context_length=64,
        **options,
    )


def scripted(script: str | bytes, prompt: str = "go") -> LanguageModel:
    data = script.encode() if isinstance(script, str) else script
    forward = ScriptForward(data, len(prompt.encode()))
    return LanguageModel(SPEC, ByteTokenizer(), forward, context_length=64)  # type: ignore[arg-type]


def test_the_text_is_what_was_generated_and_ends_before_the_stop_token() -> None:
    completion = scripted("héllo").generate("go")
    assert completion.text == "héllo"
    assert completion.token_ids == (*"héllo".encode(), END)
    assert completion.prompt_ids == tuple(b"go")
    assert completion.finish_reason == "stop"
    assert (completion.usage.prompt, completion.usage.completion) == (2, 7)
    assert completion.timings.first_token_s is not None


def test_pieces_are_whole_characters() -> None:
    with scripted("aé€😀z").stream("go") as stream:
        assert list(stream) == ["a", "é", "€", "😀", "z"]


def test_bytes_that_are_no_character_come_out_as_replacement() -> None:
    assert scripted(b"a\xf0\x9f").generate("go").text == "a\ufffd"


def test_ignore_eos_goes_on() -> None:
    completion = scripted("ab").generate("go", ignore_eos=True, max_tokens=4)
    assert completion.token_ids == (97, 98, END, END)
    assert completion.finish_reason == "length"


@pytest.mark.parametrize(
    ("stop", "text", "tokens"),
    [("lo", "hel", 5), (["xx", "l"], "he", 3), ("world!", "hello worl", 11), ("go", "hello worl", 11)],
)
def test_stop_strings_end_the_answer_before_themselves(stop: str | list[str], text: str, tokens: int) -> None:
    model = scripted("hello worl")
    with model.stream("go", stop=stop) as stream:
        pieces = list(stream)
    assert "".join(pieces) == stream.completion.text == text
    assert stream.completion.finish_reason == "stop"
    assert len(stream.completion.token_ids) == tokens
    model.engine.step()
    assert model.engine.idle


def test_a_stop_string_may_begin_in_one_token_and_end_in_another_or_inside_a_character_sequence() -> None:
    assert scripted("caféé!").generate("go", stop="é!").text == "café"


def test_what_was_held_back_comes_out_at_the_end() -> None:
    assert scripted("ab<en").generate("go", stop="<end>").text == "ab<en"


def test_leaving_a_stream_cancels_it() -> None:
    model = scripted("hello")
    with model.stream("go") as stream:
        assert next(stream) == "h"
    assert stream.completion.finish_reason == "cancelled"
    assert stream.completion.text == "h"
    assert list(stream) == []
    model.engine.step()
    assert model.engine.idle


def test_an_answer_is_not_there_before_its_end() -> None:
    stream = scripted("hello").stream("go")
    with pytest.raises(RequestError, match="has not ended"):
        _ = stream.completion
    stream.close()


def test_messages_go_through_the_template() -> None:
    prompt = "user:hi;"
    completion = scripted("yes", prompt).generate(messages=[{"role": "user", "content": "hi"}])
    assert completion.text == "yes"
    assert completion.prompt_ids == tuple(prompt.encode())


@pytest.mark.parametrize("given", [{}, {"text": "a", "ids": [1]}, {"ids": [1], "messages": []}])
def test_exactly_one_kind_of_prompt_is_allowed(given: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match="allowed: one of text, messages, ids"):
        hashed().generate(**given)


def test_a_prompt_over_the_context_is_an_error_with_the_counts() -> None:
    model = hashed()
    with pytest.raises(ContextOverflow, match="100 tokens; the context holds 64"):
        model.generate("x" * 100)
    with pytest.raises(ContextOverflow, match=r"prompt \(60 tokens\).*max_tokens 5.*at most 4"):
        model.generate("x" * 60, max_tokens=5)
    assert len(model.generate("x" * 60, ignore_eos=True).token_ids) == 4


def test_logits_are_those_of_every_position() -> None:
    model = hashed(step_tokens=5)
    ids = list(range(40, 57))
    logits = model.logits(ids)
    expected = [HashForward(vocab_size=END + 1).expected(ids[: i + 1]) for i in range(len(ids))]
    assert logits.dtype == np.float32
    np.testing.assert_array_equal(logits, expected)


def test_logits_that_are_not_numbers_raise() -> None:
    forward = HashForward(vocab_size=END + 1)
    forward.poison = 7
    model = LanguageModel(SPEC, ByteTokenizer(), forward, context_length=64)  # type: ignore[arg-type]
    with pytest.raises(NumericalError):
        model.logits([5, 7, 9])
    with pytest.raises(NumericalError):
        model.generate(ids=[5, 7, 9])
    assert model.engine.idle


def test_the_same_seed_gives_the_same_text_and_a_drawn_one_is_reported() -> None:
    model = hashed()
    drawn = model.generate("x", temperature=1.5, max_tokens=20, ignore_eos=True)
    again = hashed().generate("x", temperature=1.5, max_tokens=20, ignore_eos=True, seed=drawn.seed)
    assert again.token_ids == drawn.token_ids
    assert model.generate("x", temperature=1.5, max_tokens=20, ignore_eos=True).token_ids != drawn.token_ids


def test_log_probabilities_come_for_each_token() -> None:
    completion = hashed().generate("abc", max_tokens=5, ignore_eos=True, logprobs=20, prompt_logprobs=0)
    assert completion.logprobs is not None and completion.prompt_logprobs is not None
    assert [score.token for score in completion.logprobs] == list(completion.token_ids)
    assert [score.token for score in completion.prompt_logprobs] == list(b"bc")
    for score in completion.logprobs:
        assert score.top[0] == (score.token, score.logprob)
        assert sum(math.exp(logprob) for _, logprob in score.top) < 1


@pytest.mark.parametrize(("window", "stride"), [(64, 32), (10, 10), (10, 3), (2, 1), (17, 16)])
def test_perplexity_scores_each_token_once_with_the_context_of_its_window(window: int, stride: int) -> None:
    ids = [int(i) for i in np.random.default_rng(0).integers(0, 256, 50)]
    forward = HashForward(vocab_size=END + 1)
    losses, before = [], 0
    for start in range(0, len(ids), stride):
        end = min(start + window, len(ids))
        for target in range(max(before, start + 1), end):
            logits = forward.expected(ids[start:target]).astype(np.float64)
            losses.append(np.log(np.exp(logits).sum()) - logits[ids[target]])
        before = end
        if end == len(ids):
            break
    seen: list[tuple[int, int]] = []
    found = hashed().perplexity(ids, window=window, stride=stride, on_window=lambda *at: seen.append(at))
    assert found.tokens == len(losses)
    assert found.mean_nll == pytest.approx(np.mean(losses), rel=1e-12)
    assert found.value == pytest.approx(np.exp(np.mean(losses)), rel=1e-12)
    assert seen[-1] == (found.windows, found.windows)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"text": "a"}, "1 tokens; at least 2"),
        ({"text": "abc", "window": 65}, "from 2 to the context length 64"),
        ({"text": "abc", "window": 8, "stride": 9}, "a stride from 1 to the window"),
    ],
)
def test_perplexity_refuses_what_it_cannot_score(options: dict[str, Any], says: str) -> None:
    with pytest.raises(RequestError, match=says):
        hashed().perplexity(**options)


def test_a_closed_model_says_so() -> None:
    with hashed() as model:
        pass
    with pytest.raises(RequestError, match="closed"):
        model.generate("a")
