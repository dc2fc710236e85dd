"""Vitral as a worker: `python ours.py MODEL THREADS CONTEXT`."""

from __future__ import annotations

import sys

from lines import serve

import vitral
from vitral.engine.measure import Plan, Runs, bytes_per_token
from vitral.formats.checkpoint import open_checkpoint
from vitral.hub import resolve


def main() -> None:
    path = resolve(sys.argv[1])
    token_bytes = bytes_per_token(open_checkpoint(path).weights)
    with vitral.load(path, threads=int(sys.argv[2]), context_length=int(sys.argv[3]), speculation=False) as model:
        runs = Runs(model.engine, model.spec.vocab_size)
        serve(
            {"token_bytes": token_bytes},
            {
                "prefill": lambda prompt: runs.prefill(Plan(prompt=prompt)),
                "decode": lambda answer: runs.decode(Plan(answer=answer)),
                "together": lambda answer, sequences: runs.batched(Plan(answer=answer, together=sequences)),
            },
        )


if __name__ == "__main__":
    main()
