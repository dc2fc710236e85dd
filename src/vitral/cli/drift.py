"""`vitral drift`: what quantising or tuning changed inside a model."""

from __future__ import annotations

from typing import Annotated

import typer

from vitral.cli.output import AsJson, facts, print_json, progress_bar, table

__all__ = ["drift"]

_TEXT = "The history of the window is the history of glass: first sand, then fire, then light. The history of the"


def drift(
    a: Annotated[str, typer.Argument(help="The original: a path, a short name, or hf:owner/name.")],
    b: Annotated[str, typer.Argument(help="The other file or type of the same model.")],
    text: Annotated[str, typer.Option(help="The text on which both are compared.")] = _TEXT,
    worst: Annotated[int, typer.Option(help="How many tokens and heads to show, worst first.", min=1, max=1000)] = 10,
    max_kl: Annotated[
        float | None, typer.Option(help="Exit code 1 if the mean KL divergence per token (nats) is above.", min=0)
    ] = None,
    max_flips: Annotated[
        int | None, typer.Option(help="Exit code 1 if more expert choices than this differ.", min=0)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare two files of one model from the inside.

    Logits, KL divergence, expert choices that flipped, heads and lens trajectories that moved. The engine's
    own model computes both: what is compared is to the bit what their answers are made of.
    """
    from vitral.errors import RequestError
    from vitral.lens import drift as compare
    from vitral.lens import open_glass

    with progress_bar("models") as bar:
        first = open_glass(a)
        bar(1, 3)
        second = open_glass(b)
        bar(2, 3)
        assert first.tokenizer is not None and second.tokenizer is not None
        ids = first.tokenizer.encode(text)
        if ids != second.tokenizer.encode(text):
            raise RequestError("the two read the text as different tokens; drift wants one tokenizer in both")
        found = compare(first, second, ids, worst=worst)
    over = (max_kl is not None and found.kl.mean > max_kl) or (max_flips is not None and found.flips > max_flips)
    if as_json:
        print_json({**found.to_json(), "within_limits": not over})
    else:
        facts(
            "the same, to the bit" if found.same else "drift of B from A",
            {
                "tokens": found.n_tokens,
                "KL(A || B), nats per token": f"{found.kl.mean:.4g}  ({found.kl.low:.4g} to {found.kl.high:.4g})",
                "largest logit difference": f"{found.largest_logit:.4g}",
                "another likeliest token": f"{found.changed} of {found.n_tokens}",
                "expert choices flipped": f"{found.flips} of {found.routes}" if found.routes else "no experts",
                "residual stream, relative, last layer": f"{found.residual[-1]:.3%}",
            },
        )
        piece = first.tokenizer.piece
        table(
            "worst tokens",
            ["place", "after", "KL", "A says", "B says", "settled in layer", "flips"],
            [
                (
                    t.position,
                    repr(piece(t.id)),
                    f"{t.kl:.4f}",
                    repr(piece(t.best_a)),
                    repr(piece(t.best_b)),
                    f"{t.commitment_a} / {t.commitment_b}",
                    t.flips,
                )
                for t in found.tokens
            ],
            numbers=["place", "KL", "flips"],
        )
        table(
            "heads that moved most",
            ["head", "pattern moved", "induction A", "induction B"],
            [
                (f"{h.layer}.{h.head}", f"{h.distance:.2%}", f"{h.induction_a:.3f}", f"{h.induction_b:.3f}")
                for h in found.heads
            ],
            numbers=["pattern moved", "induction A", "induction B"],
        )
    if over:
        raise typer.Exit(1)
