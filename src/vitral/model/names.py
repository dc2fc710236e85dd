"""The names and shapes of a model's tensors: one list, derived from a ModelSpec.

Every layout's dialect is translated to these names in `formats/mapping.py` and nowhere else.
Query and key rows are in the half-split order of rotary pairs (row d of a head turns with row
d + head_dim / 2), as in Hugging Face checkpoints and TransformerLens.
"""

from __future__ import annotations

from vitral.model.spec import ModelSpec

__all__ = ["tensor_shapes"]


def tensor_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Every tensor of the model and its shape, in the order of the forward pass.

    A matrix is (outputs, inputs). A model with tied embeddings has no `unembed.weight`.
    """
    shapes: dict[str, tuple[int, ...]] = {"embed.weight": (spec.vocab_size, spec.dim)}
    for i in range(spec.n_layers):
        shapes |= {f"blocks.{i}.{name}": shape for name, shape in _block(spec, i).items()}
    shapes["ln_final.weight"] = (spec.dim,)
    if not spec.tied_embeddings:
        shapes["unembed.weight"] = (spec.vocab_size, spec.dim)
    return shapes


def _block(spec: ModelSpec, layer: int) -> dict[str, tuple[int, ...]]:
    queries, keys = spec.n_heads * spec.head_dim, spec.n_kv_heads * spec.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "ln1.weight": (spec.dim,),
        "attn.q.weight": (queries, spec.dim),
        "attn.k.weight": (keys, spec.dim),
        "attn.v.weight": (keys, spec.dim),
        "attn.o.weight": (spec.dim, queries),
        "ln2.weight": (spec.dim,),
    }
    moe = spec.moe_of(layer)
    if moe is None:
        return shapes | _swiglu("mlp", spec)
    shapes["mlp.router.weight"] = (moe.n_experts, spec.dim)
    for e in range(moe.n_experts):
        shapes |= _swiglu(f"mlp.experts.{e}", spec)
    return shapes


def _swiglu(prefix: str, spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    return {
        f"{prefix}.gate.weight": (spec.hidden_dim, spec.dim),
        f"{prefix}.up.weight": (spec.hidden_dim, spec.dim),
        f"{prefix}.down.weight": (spec.dim, spec.hidden_dim),
    }
