"""Plant a domain in two experts of a small random Mixtral, find them by their routes, and prove it by a knock-out.

    python examples/planted_experts.py

Each of two domains is a cycle of twenty words. The router's rows point at a direction that a domain's words
share; the down projections of its two experts solve for the unembedding of the next word.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vitral.formats.quants import type_info
from vitral.formats.weights import Tensor, Weights
from vitral.lens import Glass, bootstrap, domain_specialisation, edits_without, token_losses
from vitral.model import law
from vitral.model.names import tensor_shapes
from vitral.model.spec import ModelSpec, MoeSpec, RopeSpec

N_WORDS, N_EXPERTS = 20, 6
DOMAINS = {"law": (0, 1), "medicine": (2, 3)}  # experts 4 and 5 know nothing


def plant(seed: int = 0) -> tuple[Glass, dict[str, list[int]]]:
    """The model, and a text of each domain."""
    spec = ModelSpec(
        dim=64,
        n_layers=1,
        n_heads=4,
        n_kv_heads=2,
        head_dim=16,
        hidden_dim=64,
        vocab_size=N_WORDS * len(DOMAINS),
        norm_eps=1e-5,
        max_context=64,
        rope=RopeSpec(1_000_000.0, "none"),
        sliding_window=None,
        tied_embeddings=False,
        moe=MoeSpec(N_EXPERTS, 2),
    )
    rng = np.random.default_rng(seed)
    weights = {
        name: np.ones(shape, np.float32)
        if len(shape) == 1
        else (rng.standard_normal(shape) / np.sqrt(shape[1])).astype(np.float32)
        for name, shape in tensor_shapes(spec).items()
    }
    weights["blocks.0.attn.o.weight"] *= np.float32(0.01)  # what is known, experts know
    marks = np.linalg.qr(rng.standard_normal((spec.dim, len(DOMAINS) + 1)))[0].T.astype(np.float32)
    router = np.repeat(marks[-1:], N_EXPERTS, axis=0)
    for d, experts in enumerate(DOMAINS.values()):
        words = slice(d * N_WORDS, (d + 1) * N_WORDS)
        x = (marks[d] + rng.standard_normal((N_WORDS, spec.dim)) / 16).astype(np.float32)
        weights["embed.weight"][words] = x
        x = x / law.rms_scale(x, spec.norm_eps)  # what the experts read
        following = np.roll(weights["unembed.weight"][words], -1, axis=0)
        for e in experts:
            router[e] = marks[d]
            name = f"blocks.0.mlp.experts.{e}."
            neurons = law.silu(x @ weights[name + "gate.weight"].T) * (x @ weights[name + "up.weight"].T)
            down = np.linalg.lstsq(neurons, following, rcond=1e-3)[0].T
            weights[name + "down.weight"] = (12 * down).astype(np.float32)
    weights["blocks.0.mlp.router.weight"] = 3 * router
    texts = {name: [d * N_WORDS + i % N_WORDS for i in range(2 * N_WORDS)] for d, name in enumerate(DOMAINS)}
    return Glass(spec, Weights(spec, {name: tensor(name, value) for name, value in weights.items()})), texts


def tensor(name: str, values: NDArray[np.float32]) -> Tensor:
    """A float32 tensor in memory."""
    raw = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    return Tensor(name, type_info("F32"), values.shape, lambda: raw)


def main() -> None:
    glass, texts = plant()
    indices = "blocks.0.mlp.hook_expert_indices"
    shares = domain_specialisation({name: glass.run(ids, [indices])[indices] for name, ids in texts.items()}, N_EXPERTS)

    def losses(experts: Sequence[int], ids: Sequence[int]) -> NDArray[np.float64]:
        edits = edits_without(glass.spec, experts=[(0, e) for e in experts])
        return token_losses(glass.logits(ids, edits), ids)

    for name, share in shares.items():
        carriers = sorted(int(e) for e in np.argsort(-share)[:2])
        print(f"{name}: its tokens go to experts {carriers} (planted: {list(DOMAINS[name])})")
        for other, ids in texts.items():
            rise = bootstrap(losses(carriers, ids) - losses((), ids))
            print(f"  without them, loss of {other}: {rise.mean:+.2f} nats ({rise.low:+.2f} to {rise.high:+.2f})")


if __name__ == "__main__":
    main()
