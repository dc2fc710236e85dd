"""`vitral run`: chat on a terminal, or answer once."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitral.cli.machine import AsJson, KvTypeOption, print_json
from vitral.errors import RequestError

if TYPE_CHECKING:
    from vitral.engine.grammar import Constraint
    from vitral.language_model import LanguageModel

__all__ = ["run"]

LONGEST_ANSWER = 512  # tokens, unless asked otherwise
FIRST_QUESTION = "What is a stained-glass window? Answer in two sentences."
_COMMANDS = {
    "/system TEXT": "set the system message and begin again",
    "/reset": "forget the conversation",
    "/help": "this list",
    "/exit": "leave (so does Ctrl-D); Ctrl-C stops an answer",
}


def run(
    model: Annotated[str, typer.Argument(help="A path, a short name, or hf:owner/name.")],
    prompt: Annotated[str | None, typer.Option(help="Answer this and end.")] = None,
    system: Annotated[str | None, typer.Option(help="The system message.")] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Continue the prompt as plain text, without a chat template.")
    ] = False,
    template: Annotated[
        str | None, typer.Option(help="The chat template, for a model that brings none: llama2, chatml ...")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="The longest answer, in tokens (512, or what the context leaves).")
    ] = None,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 always takes the most likely token.")] = 0.0,
    top_k: Annotated[int, typer.Option(min=0, help="Draw from the k most likely; 0 for all.")] = 0,
    top_p: Annotated[float, typer.Option(min=0.0, max=1.0, help="Draw from the most likely that sum to p.")] = 1.0,
    min_p: Annotated[float, typer.Option(min=0.0, max=1.0, help="Leave out what is below p of the most likely.")] = 0.0,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1 repeats less.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same text, always.")] = None,
    json_schema: Annotated[
        Path | None, typer.Option(help="A file with a JSON schema that every answer shall fulfil.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads that compute.")] = None,
    context: Annotated[int | None, typer.Option(min=1, help="Tokens of prompt and answer together.")] = None,
    memory_budget: Annotated[
        str | None,
        typer.Option(
            help="Memory that weights and cache may take, such as 20GB; of a larger mixture, experts stay in the file."
        ),
    ] = None,
    kv_type: KvTypeOption = "bf16",
    verify_key: Annotated[Path | None, typer.Option(help="A public key: refuse a model that it did not sign.")] = None,
    as_json: AsJson = False,
) -> None:
    """Chat with a model, or answer once.

    With --prompt, or without a terminal, one answer goes to standard output; the question may come on
    standard input. Defaults are greedy: the same question gives the same answer.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # unused here, they would spin for 0.1 s once NumPy is read
    import vitral
    from vitral.settings import size_of

    sampling: dict[str, Any] = {
        "constraint": None if json_schema is None else _constraint(json_schema),
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "seed": seed,
    }
    interactive = prompt is None and sys.stdin.isatty() and sys.stdout.isatty() and not as_json
    if raw and (system is not None or template is not None):
        raise RequestError("--system and --template have no place in --raw text; leave them or --raw out")
    if raw and interactive:
        raise RequestError("--raw continues a text, and there is none; add --prompt TEXT")
    budget = None if memory_budget is None else size_of("--memory-budget", memory_budget)
    with vitral.load(
        model,
        threads=threads,
        context_length=context,
        kv_type=kv_type,
        verify_key=verify_key,
        memory_bytes=budget,
    ) as loaded:
        if interactive:
            _chat(loaded, model, system, template, sampling)
        else:
            _answer_once(loaded, prompt or _question(), system, raw, template, sampling, as_json)


def _question() -> str:
    """What standard input asks, or a question of ours, said aloud."""
    asked = "" if sys.stdin is None or sys.stdin.isatty() else sys.stdin.read().strip()
    if not asked:
        from vitral.cli.output import tell

        tell(f"no question was given, so here is one: {FIRST_QUESTION}")
    return asked or FIRST_QUESTION


def _constraint(path: Path) -> Constraint:
    from vitral.engine.grammar import Constraint

    try:
        schema = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise RequestError(f"--json-schema {path}: {error.strerror}; give a file with a JSON schema") from None
    except (ValueError, RecursionError) as error:
        raise RequestError(f"--json-schema {path} is no JSON: {error}") from None
    return Constraint.json_schema(schema)


def _answer_once(
    model: LanguageModel,
    prompt: str,
    system: str | None,
    raw: bool,
    template: str | None,
    sampling: dict[str, Any],
    as_json: bool,
) -> None:
    given: dict[str, Any] = {"text": prompt}
    if not raw:
        given = {"messages": _opening(system) + [_message("user", prompt)], "template": template}
    with model.stream(**given, **_bounded(model, given, sampling)) as stream:
        for piece in stream:
            if not as_json:
                sys.stdout.write(piece)
                sys.stdout.flush()
    done = stream.completion
    if as_json:
        print_json(
            {
                "text": done.text,
                "finish_reason": done.finish_reason,
                "conforms": done.conforms,
                "seed": done.seed,
                "prompt_ids": done.prompt_ids,
                "token_ids": done.token_ids,
                "usage": {
                    "prompt": done.usage.prompt,
                    "cached": done.usage.cached,
                    "completion": done.usage.completion,
                },
                "timings": {"first_token_s": done.timings.first_token_s, "total_s": done.timings.total_s},
            }
        )
        return
    sys.stdout.write("\n")
    if done.finish_reason == "length":
        from vitral.cli.output import tell

        tell(f"(stopped after {done.usage.completion} tokens; --max-tokens allows more)")


def _chat(model: LanguageModel, name: str, system: str | None, template: str | None, sampling: dict[str, Any]) -> None:
    from vitral.cli.output import console

    console.print(f"[bold]{name}[/bold]  {model.context_length} tokens of context. /help shows the commands.")
    messages = _opening(system)
    while True:
        try:
            line = console.input("[bold cyan]> [/bold cyan]").strip()
        except EOFError:
            console.print()
            return
        command, _, rest = line.partition(" ")
        match command:
            case "":
                continue
            case "/exit" | "/quit":
                return
            case "/reset":
                messages = _opening(system)
            case "/system":
                system = rest or None
                messages = _opening(system)
            case _ if command.startswith("/"):
                for text, meaning in _COMMANDS.items():
                    console.print(f"  {text:14}{meaning}", markup=False, highlight=False)
            case _:
                asked = [*messages, _message("user", line)]
                if (answer := _reply(model, asked, template, sampling)) is not None:
                    messages = [*asked, _message("assistant", answer)]


def _reply(
    model: LanguageModel, messages: list[dict[str, str]], template: str | None, sampling: dict[str, Any]
) -> str | None:
    """Stream an answer. Ctrl-C ends it and keeps what was said; None if there can be no answer."""
    said = ""
    given: dict[str, Any] = {"messages": messages, "template": template}
    try:
        with model.stream(**given, **_bounded(model, given, sampling)) as stream:
            for piece in stream:
                said += piece
                sys.stdout.write(piece)
                sys.stdout.flush()
    except KeyboardInterrupt:
        sys.stdout.write(" [stopped]")
    except RequestError as error:
        from vitral.cli.output import tell

        tell(f"error: {error}; /reset begins again")
        return None
    sys.stdout.write("\n")
    return said


def _bounded(model: LanguageModel, given: dict[str, Any], sampling: dict[str, Any]) -> dict[str, Any]:
    """The sampling with a longest answer that fits, where none was asked for."""
    if sampling["max_tokens"] is not None:
        return sampling
    prompt = (
        model.tokenizer.encode(given["text"])
        if "text" in given
        else model.tokenizer.encode_chat(given["messages"], template=given["template"])
    )
    return {**sampling, "max_tokens": max(1, min(LONGEST_ANSWER, model.context_length - len(prompt)))}


def _opening(system: str | None) -> list[dict[str, str]]:
    return [_message("system", system)] if system else []


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}
