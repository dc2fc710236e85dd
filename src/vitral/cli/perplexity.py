"""`vitral perplexity`: how well a model predicts a text."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from vitral.cli.machine import AsJson, KvTypeOption, print_json
from vitral.cli.output import facts, progress_bar
from vitral.errors import RequestError

__all__ = ["perplexity"]


def perplexity(
    model: Annotated[str, typer.Argument(help="A path, a short name, or hf:owner/name.")],
    file: Annotated[Path, typer.Argument(help="A text in UTF-8.")],
    window: Annotated[int | None, typer.Option(min=2, help="Tokens that are read together (512).")] = None,
    stride: Annotated[int | None, typer.Option(min=1, help="Tokens from a window to the next (half a window).")] = None,
    windows: Annotated[int | None, typer.Option(min=1, help="Stop after so many windows.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads that compute.")] = None,
    kv_type: KvTypeOption = "bf16",
    as_json: AsJson = False,
) -> None:
    """Measure how well a model predicts a text, by sliding windows."""
    import vitral

    try:
        text = file.read_text("utf-8")
    except OSError as error:
        raise RequestError(f"{file} cannot be read: {error.strerror}; give a text file") from None
    except UnicodeDecodeError as error:
        raise RequestError(f"{file} is not UTF-8 text at byte {error.start}; give one that is") from None
    with vitral.load(model, threads=threads, kv_type=kv_type) as loaded, progress_bar("windows") as bar:
        ids = loaded.tokenizer.encode(text)
        size = window or min(512, loaded.context_length)
        step = stride or max(1, size // 2)
        if windows is not None:
            ids = ids[: size + (windows - 1) * step]
        found = loaded.perplexity(ids, window=size, stride=step, on_window=bar)
    if as_json:
        print_json({"window": size, "stride": step, **asdict(found)})
    else:
        facts(
            f"{file.name}, windows of {size} every {step}",
            {
                "perplexity": f"{found.value:.4f}",
                "mean loss": f"{found.mean_nll:.6f} nats a token",
                "tokens": f"{found.tokens:,} in {found.windows:,} windows",
            },
        )
