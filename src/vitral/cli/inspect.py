"""`vitral inspect`: what a model saw, expected and weighed in a text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from vitral.cli.output import AsJson, console, print_json, progress_bar

__all__ = ["inspect"]


def inspect(
    model: Annotated[str, typer.Argument(help="A path, a short name, or hf:owner/name.")],
    prompt: Annotated[str, typer.Argument(help="The text.")],
    chat: Annotated[bool, typer.Option("--chat", help="Read the text as a message to a chat model.")] = False,
    max_tokens: Annotated[int, typer.Option(min=0, help="Let the model answer first, with so many tokens.")] = 0,
    intervene: Annotated[
        Path | None, typer.Option(help="A JSON file of interventions; shows before and after.")
    ] = None,
    window: Annotated[int, typer.Option(min=1, help="How many of the last tokens get lens and attribution.")] = 64,
    top: Annotated[int, typer.Option(min=1, max=50, help="How many candidates a prediction lists.")] = 5,
    html: Annotated[Path | None, typer.Option(help="Write a page that needs no network to this file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show what a model saw, expected and weighed in a text.

    Probabilities of the tokens, what each layer would say, what adds up to the last prediction, and which
    experts were chosen.
    """
    import vitral
    from vitral.lens.inspect import inspect as look

    interventions = () if intervene is None else _interventions(intervene)
    with vitral.load(model) as loaded:
        ids = (
            loaded.tokenizer.encode_chat([{"role": "user", "content": prompt}])
            if chat
            else loaded.tokenizer.encode(prompt)
        )
        given = len(ids)
        if max_tokens:
            ids = [*ids, *loaded.generate(ids=ids, max_tokens=max_tokens).token_ids]
        with progress_bar("layers") as bar:
            found = look(
                loaded,
                ids,
                name=model,
                n_prompt=given,
                window=window,
                top=top,
                interventions=interventions,
                progress=bar,
            )
    if html is not None:
        from vitral.lens.page import page

        html.write_text(page(found), "utf-8")
        if not as_json:
            console.print(f"wrote {html}: open it in a browser", highlight=False, markup=False, soft_wrap=True)
    if as_json:
        print_json(found)
    elif html is None:
        from vitral.cli.inspect_screen import show

        show(found)


def _interventions(path: Path) -> Any:
    from vitral.engine.interventions import from_document
    from vitral.errors import RequestError

    try:
        document = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{path} is not JSON in UTF-8 ({error}); give a document of interventions") from error
    return from_document(document, path.parent)
