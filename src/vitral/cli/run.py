"""`vitral run`: chat on a terminal, or answer once."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitral.cli.output import AsJson, console, print_json, tell
from vitral.errors import RequestError

if TYPE_CHECKING:
    from vitral.language_model import LanguageModel

__all__ = ["run"]

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
    max_tokens: Annotated[int, typer.Option(min=1, help="The longest answer, in tokens.")] = 512,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 always takes the most likely token.")] = 0.0,
    top_k: Annotated[int, typer.Option(min=0, help="Draw from the k most likely; 0 for all.")] = 0,
    top_p: Annotated[float, typer.Option(min=0.0, max=1.0, help="Draw from the most likely that sum to p.")] = 1.0,
    min_p: Annotated[float, typer.Option(min=0.0, max=1.0, help="Leave out what is below p of the most likely.")] = 0.0,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1 repeats less.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same text, always.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads that compute.")] = None,
    context: Annotated[int | None, typer.Option(min=1, help="Tokens of prompt and answer together.")] = None,
    as_json: AsJson = False,
) -> None:
    """Chat with a model; without a terminal, answer standard input, or a first question."""
    import vitral

    sampling = {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "seed": seed,
    }
    interactive = prompt is None and sys.stdin.isatty() and sys.stdout.isatty() and not as_json
    if prompt is None and not interactive:
        prompt = sys.stdin.read().strip() if sys.stdin and not sys.stdin.isatty() else ""
        if not prompt:
            prompt = FIRST_QUESTION
            tell(f"no question was given, so here is one: {prompt}")
    with vitral.load(model, threads=threads, context_length=context) as loaded:
        if interactive:
            _chat(loaded, model, system, sampling)
        else:
            _answer_once(loaded, str(prompt), system, raw, sampling, as_json)


def _answer_once(
    model: LanguageModel, prompt: str, system: str | None, raw: bool, sampling: dict[str, Any], as_json: bool
) -> None:
    if raw and system is not None:
        raise RequestError("--system has no place in --raw text; leave one of them out")
    given: dict[str, Any] = {"text": prompt} if raw else {"messages": _opening(system) + [_message("user", prompt)]}
    with model.stream(**given, **sampling) as stream:
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
        tell(f"(stopped after {done.usage.completion} tokens; --max-tokens allows more)")


def _chat(model: LanguageModel, name: str, system: str | None, sampling: dict[str, Any]) -> None:
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
                messages.append(_message("user", line))
                messages.append(_message("assistant", _reply(model, messages, sampling)))


def _reply(model: LanguageModel, messages: list[dict[str, str]], sampling: dict[str, Any]) -> str:
    """Stream an answer; Ctrl-C ends it and keeps what was said."""
    said = ""
    try:
        with model.stream(messages=messages, **sampling) as stream:
            for piece in stream:
                said += piece
                sys.stdout.write(piece)
                sys.stdout.flush()
    except KeyboardInterrupt:
        sys.stdout.write(" [stopped]")
    except RequestError as error:
        sys.stdout.write(f"error: {error}; /reset begins again")
    sys.stdout.write("\n")
    return said


def _opening(system: str | None) -> list[dict[str, str]]:
    return [_message("system", system)] if system else []


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}
