"""Text in, text out: a model, its tokenizer and its engine as one object."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from vitral.completion import Completion, Perplexity, StopStrings
from vitral.engine import sampler
from vitral.engine.adapters import Adapters, LoadedAdapter, TakesAdapters
from vitral.engine.engine import Answer, Engine
from vitral.engine.forward import Forward
from vitral.engine.request import Finished, SamplingParams
from vitral.engine.tool_parser import messages_for_template
from vitral.errors import RequestError
from vitral.model.law import F32
from vitral.model.spec import ModelSpec
from vitral.stream import Stream
from vitral.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:  # most answers have neither constraint nor tools: these are read when the first has
    from vitral.engine.grammar import Constraint, Grammars
    from vitral.engine.tools import ToolChoice, ToolUse
    from vitral.formats.weights import Weights
    from vitral.provenance.bases import Base

__all__ = ["LanguageModel"]

Messages = Sequence[Mapping[str, Any]]


class LanguageModel:
    """A model that generates. Several threads may use it at once: their requests share the steps.

    `spec` says what the model is, `tokenizer` turns text into ids and back, `engine` runs requests of
    ids, `context_length` is the most tokens of prompt and answer, `weights` are
    the tensors in their file, for who looks at them.
    """

    def __init__(
        self,
        spec: ModelSpec,
        tokenizer: Tokenizer,
        forward: Forward,
        *,
        context_length: int,
        step_tokens: int = 512,
        prefix_cache: bool = True,
        speculation: bool = True,
        weights: Weights | None = None,
        base: Base | None = None,
    ) -> None:
        self.spec = spec
        self.weights = weights
        self._base = base
        self.tokenizer = tokenizer
        self.context_length = context_length
        self._engine: Engine | None = Engine(
            forward,
            context_length=context_length,
            step_tokens=step_tokens,
            prefix_cache=prefix_cache,
            speculation=speculation,
        )
        self._loaded_adapters = Adapters(forward, self._engine) if isinstance(forward, TakesAdapters) else None

    @functools.cached_property
    def grammars(self) -> Grammars:
        """Constraints over this model's vocabulary."""
        from vitral.engine.grammar import Grammars

        return Grammars(self.tokenizer, self.spec.vocab_size)

    @property
    def engine(self) -> Engine:
        """The engine below; RequestError once the model is closed."""
        if self._engine is None:
            raise RequestError("the model is closed; load it again")
        return self._engine

    def close(self) -> None:
        """Give the memory back. May be called again."""
        self._engine = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def load_adapter(self, name: str, path: str | Path) -> str:
        """Load a LoRA adapter, a PEFT folder or a GGUF file, under a name; its digest, sha256 in hex.

        Requests with and without adapters share the steps; each gets the bits it would get alone.
        `adapter(name).base` says how it is known that it was trained on this model. Raises FormatError, or
        TensorMismatch for an adapter that matches no module, or of another base.
        """
        from vitral.formats.adapters import read_adapter

        adapter = read_adapter(Path(path), self.spec)
        return self._adapters().load(name, adapter, None if self._base is None else self._base.accept(adapter)).digest

    def unload_adapter(self, name: str) -> None:
        """Give an adapter's memory back; RequestError while requests with it have not ended."""
        self._adapters().unload(name)

    @property
    def adapters(self) -> list[str]:
        """Names of the adapters that are loaded."""
        return self._adapters().names() if self._loaded_adapters is not None else []

    def adapter(self, name: str) -> LoadedAdapter:
        """A loaded adapter, for `engine.answer`; RequestError names those that are loaded."""
        return self._adapters().find(name)

    def _adapters(self) -> Adapters:
        if self._engine is None or self._loaded_adapters is None:
            raise RequestError("this model takes no adapters: it is closed, or not the native one")
        return self._loaded_adapters

    def logits(self, ids: Sequence[int]) -> F32:
        """Logits (T, V), float32, after each of T tokens: row t says what follows token t.

        Raises RequestError for no ids or one outside the vocabulary, ContextOverflow for too many.

        >>> logits = model.logits(model.tokenizer.encode("Once upon a time"))
        >>> logits.shape[1] == model.spec.vocab_size
        True
        """
        rows = np.empty((len(ids), self.spec.vocab_size), np.float32)

        def keep(position: int, row: F32) -> None:
            rows[position] = row

        with self.engine.answer(ids, SamplingParams(max_tokens=0), on_logits=keep) as answer:
            _raise_errors(answer)
        return rows

    def generate(
        self,
        text: str | None = None,
        *,
        messages: Messages | None = None,
        ids: Sequence[int] | None = None,
        template: str | None = None,
        max_tokens: int | None = None,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        logit_bias: Mapping[int, float] | None = None,
        seed: int | None = None,
        stop: str | Sequence[str] = (),
        ignore_eos: bool = False,
        logprobs: int | None = None,
        prompt_logprobs: int | None = None,
        constraint: Constraint | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: ToolChoice = "auto",
        parallel_tool_calls: bool = True,
        adapter: str | None = None,
    ) -> Completion:
        """Continue a text, answer messages, or continue ids: exactly one of the three.

        Text gets the special tokens that the model wants around it; control tokens written in it stay
        plain text. Messages go through the model's chat template, or through the one that `template` names
        (ours, such as "llama2", or one of several that the checkpoint has). Without a temperature the most likely
        token is taken; `SamplingParams` explains the numbers. `stop` is one string or several, at which
        the answer ends; `ignore_eos` goes on behind the model's own end. `constraint` holds the answer to
        a form; log-probabilities stay those of the model without it.

        `tools` are functions that the answer to messages may call, in OpenAI's form; `tool_choice` is
        "none", "auto", "required" or {"type": "function", "function": {"name": ...}}. Calls obey the
        schemas of their tools. They are in `tool_calls`, not in `text`. `adapter` names one that
        `load_adapter` loaded.

        Raises ContextOverflow if prompt and max_tokens do not fit the context, RequestError for
        anything else that cannot be served.

        >>> model.generate("Once upon a time", max_tokens=8).text
        ', there was a little girl'
        >>> again = model.generate("Once upon a time", max_tokens=8, temperature=1.0, seed=7)
        >>> again.text == model.generate("Once upon a time", max_tokens=8, temperature=1.0, seed=7).text
        True
        """
        stream = self.stream(
            text,
            messages=messages,
            ids=ids,
            template=template,
            max_tokens=max_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            presence_penalty=presence_penalty,
            frequency_penalty=frequency_penalty,
            logit_bias=logit_bias,
            seed=seed,
            stop=stop,
            ignore_eos=ignore_eos,
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
            constraint=constraint,
            tools=tools,
            tool_choice=tool_choice,
            parallel_tool_calls=parallel_tool_calls,
            adapter=adapter,
        )
        with stream:
            for _ in stream:
                pass
        return stream.completion

    def stream(
        self,
        text: str | None = None,
        *,
        messages: Messages | None = None,
        ids: Sequence[int] | None = None,
        template: str | None = None,
        max_tokens: int | None = None,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        logit_bias: Mapping[int, float] | None = None,
        seed: int | None = None,
        stop: str | Sequence[str] = (),
        ignore_eos: bool = False,
        logprobs: int | None = None,
        prompt_logprobs: int | None = None,
        constraint: Constraint | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: ToolChoice = "auto",
        parallel_tool_calls: bool = True,
        adapter: str | None = None,
    ) -> Stream:
        """Like `generate`, but gives the text in pieces as they become certain.

        A piece is never half a character nor part of a stop string. `completion` is there at the end.

        >>> with model.stream("Once upon a time", max_tokens=8) as stream:
        ...     "".join(stream) == stream.completion.text
        True
        """
        use = self._tool_use(messages, constraint, tools, tool_choice, parallel_tool_calls)
        if use is not None:
            constraint, template = use.constraint, template or use.template
        prompt, continuing = self._prompt(text, messages, ids, template, tools if use is not None else None)
        params = SamplingParams(
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            presence_penalty=presence_penalty,
            frequency_penalty=frequency_penalty,
            logit_bias=dict(logit_bias or {}),
            seed=seed,
            max_tokens=max_tokens,
            stop_ids=frozenset() if ignore_eos else self.tokenizer.eos_ids,
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
        )
        stops = StopStrings([stop] if isinstance(stop, str) else stop)
        matcher = None
        if constraint is not None:
            matcher = self.grammars.start(constraint, stop_ids=params.stop_ids, continuing=continuing)
        format = None if use is None else use.format
        return Stream(
            self.engine,
            self.tokenizer,
            prompt,
            params,
            stops,
            matcher,
            continuing=continuing,
            call_format=format,
            adapter=None if adapter is None else self._adapters().find(adapter),
        )

    def _tool_use(
        self,
        messages: Messages | None,
        constraint: Constraint | None,
        tools: Sequence[Mapping[str, Any]] | None,
        choice: ToolChoice,
        parallel: bool,
    ) -> ToolUse | None:
        """What tools ask for; None where the answer may not call any."""
        if not tools:
            if choice not in ("auto", "none"):
                raise RequestError(f"tool_choice is {choice!r:.80} without tools; give tools, or leave it out")
            return None
        if messages is None:
            raise RequestError("tools go with messages; give messages, or leave tools out")
        if constraint is not None and choice != "none":
            raise RequestError("constraint and tools were both given; leave one out, or say tool_choice none")
        from vitral.engine.tools import use_tools

        use = use_tools(self.tokenizer, tools, choice, parallel=parallel)
        return None if choice == "none" else use

    def perplexity(
        self,
        text: str | Sequence[int],
        *,
        window: int | None = None,
        stride: int | None = None,
        on_window: Callable[[int, int], None] | None = None,
    ) -> Perplexity:
        """How well the model predicts a text, given as text or ids.

        Windows of `window` tokens (512, or the context if shorter) begin every `stride` tokens (half a
        window if not said); in each, the tokens that no window before scored are scored with all before
        them in the window as context. The first token of a window is never scored.
        `on_window(done, all)` sees the progress.

        >>> round(model.perplexity("Lily and Ben are friends. They like to play in the park.").value, 2)
        1.85
        """
        ids = self.tokenizer.encode(text) if isinstance(text, str) else list(text)
        window = min(512, self.context_length) if window is None else window
        stride = max(1, window // 2) if stride is None else stride
        if not 2 <= window <= self.context_length or not 1 <= stride <= window:
            raise RequestError(
                f"window is {window} and stride {stride}; allowed: a window from 2 to the context length "
                f"{self.context_length} and a stride from 1 to the window"
            )
        if len(ids) < 2:
            raise RequestError(f"the text has {len(ids)} tokens; at least 2 are needed, one to predict the other from")
        windows = [(start, min(start + window, len(ids))) for start in range(0, len(ids), stride)]
        windows = windows[: 1 + next(i for i, (_, end) in enumerate(windows) if end == len(ids))]
        total, scored, before = 0.0, 0, 0
        for done, (start, end) in enumerate(windows, 1):
            losses = self._losses(ids[start:end], max(before - start, 1))
            total += math.fsum(losses)
            scored += len(losses)
            before = end
            if on_window is not None:
                on_window(done, len(windows))
        if not scored:
            raise RequestError("no token could be scored; give a longer text or a stride below the window")
        return Perplexity(math.exp(total / scored), total / scored, scored, len(windows))

    def _losses(self, ids: Sequence[int], first: int) -> list[float]:
        """Negative log-likelihood of the tokens from `first` on."""
        losses: list[float] = []

        def take(position: int, row: F32) -> None:
            if first <= position + 1 < len(ids):
                losses.append(-sampler.score(row, int(np.argmax(row)), ids[position + 1], 0).logprob)

        with self.engine.answer(ids, SamplingParams(max_tokens=0), on_logits=take) as answer:
            _raise_errors(answer)
        return losses

    def _prompt(
        self,
        text: str | None,
        messages: Messages | None,
        ids: Sequence[int] | None,
        template: str | None,
        tools: Sequence[Mapping[str, Any]] | None,
    ) -> tuple[list[int], bool]:
        """The ids to read, and whether the answer goes on from text that is already there."""
        given = [name for name, value in (("text", text), ("messages", messages), ("ids", ids)) if value is not None]
        if len(given) != 1:
            raise RequestError(
                f"{' and '.join(given) or 'nothing'} was given to generate from; allowed: one of text, messages, ids"
            )
        if messages is not None:
            return self.tokenizer.encode_chat(messages_for_template(messages), tools=tools, template=template), False
        if template is not None:
            raise RequestError(f"template {template!r} was given without messages; give messages, or leave it out")
        prompt = self.tokenizer.encode(text) if text is not None else [int(token) for token in ids or ()]
        return prompt, any(token not in self.tokenizer.special_ids for token in prompt)


def _raise_errors(answer: Answer) -> None:
    for event in answer:
        if isinstance(event, Finished) and event.error is not None:
            raise event.error
