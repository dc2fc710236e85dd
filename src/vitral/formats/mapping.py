"""Foreign tensor names to ours and back: the one home of every dialect's names.

The configurations of the dialects are in `dialect_gguf.py`, `dialect_hf.py` and `dialect_params.py`;
nothing outside these four files knows a foreign word. Query and key rows that keep rotary pairs side
by side are put in our order by `rows.py`.
"""

from __future__ import annotations

import re

__all__ = ["canonical_from_gguf", "canonical_from_hf", "canonical_from_meta", "gguf_name", "hf_name", "is_ignored"]

_GGUF_TENSORS = [
    (r"token_embd\.weight", "embed.weight"),
    (r"output_norm\.weight", "ln_final.weight"),
    (r"output\.weight", "unembed.weight"),
    (r"blk\.(\d+)\.attn_norm\.weight", r"blocks.\1.ln1.weight"),
    (r"blk\.(\d+)\.attn_(q|k|v)\.weight", r"blocks.\1.attn.\2.weight"),
    (r"blk\.(\d+)\.attn_output\.weight", r"blocks.\1.attn.o.weight"),
    (r"blk\.(\d+)\.ffn_norm\.weight", r"blocks.\1.ln2.weight"),
    (r"blk\.(\d+)\.ffn_(gate|up|down)\.weight", r"blocks.\1.mlp.\2.weight"),
    (r"blk\.(\d+)\.ffn_gate_inp\.weight", r"blocks.\1.mlp.router.weight"),
    (r"blk\.(\d+)\.ffn_(gate|up|down)\.(\d+)\.weight", r"blocks.\1.mlp.experts.\3.\2.weight"),
    (r"blk\.(\d+)\.ffn_(gate|up|down)_exps\.weight", r"blocks.\1.mlp.experts.*.\2.weight"),
]
_HF_TENSORS = [
    (r"model\.embed_tokens\.weight", "embed.weight"),
    (r"model\.norm\.weight", "ln_final.weight"),
    (r"lm_head\.weight", "unembed.weight"),
    (r"model\.layers\.(\d+)\.input_layernorm\.weight", r"blocks.\1.ln1.weight"),
    (r"model\.layers\.(\d+)\.self_attn\.([qkvo])_proj\.weight", r"blocks.\1.attn.\2.weight"),
    (r"model\.layers\.(\d+)\.post_attention_layernorm\.weight", r"blocks.\1.ln2.weight"),
    (r"model\.layers\.(\d+)\.mlp\.(gate|up|down)_proj\.weight", r"blocks.\1.mlp.\2.weight"),
    (r"model\.layers\.(\d+)\.(?:block_sparse_moe|mlp)\.gate\.weight", r"blocks.\1.mlp.router.weight"),
    (r"model\.layers\.(\d+)\.block_sparse_moe\.experts\.(\d+)\.w1\.weight", r"blocks.\1.mlp.experts.\2.gate.weight"),
    (r"model\.layers\.(\d+)\.block_sparse_moe\.experts\.(\d+)\.w2\.weight", r"blocks.\1.mlp.experts.\2.down.weight"),
    (r"model\.layers\.(\d+)\.block_sparse_moe\.experts\.(\d+)\.w3\.weight", r"blocks.\1.mlp.experts.\2.up.weight"),
    (r"model\.layers\.(\d+)\.mlp\.experts\.gate_up_proj", r"blocks.\1.mlp.experts.*.gate+up.weight"),
    (r"model\.layers\.(\d+)\.mlp\.experts\.down_proj", r"blocks.\1.mlp.experts.*.down.weight"),
]
_META_TENSORS = [
    (r"tok_embeddings\.weight", "embed.weight"),
    (r"norm\.weight", "ln_final.weight"),
    (r"output\.weight", "unembed.weight"),
    (r"layers\.(\d+)\.attention_norm\.weight", r"blocks.\1.ln1.weight"),
    (r"layers\.(\d+)\.attention\.w([qkvo])\.weight", r"blocks.\1.attn.\2.weight"),
    (r"layers\.(\d+)\.ffn_norm\.weight", r"blocks.\1.ln2.weight"),
    (r"layers\.(\d+)\.feed_forward\.w1\.weight", r"blocks.\1.mlp.gate.weight"),
    (r"layers\.(\d+)\.feed_forward\.w2\.weight", r"blocks.\1.mlp.down.weight"),
    (r"layers\.(\d+)\.feed_forward\.w3\.weight", r"blocks.\1.mlp.up.weight"),
    (r"layers\.(\d+)\.feed_forward\.gate\.weight", r"blocks.\1.mlp.router.weight"),
    (r"layers\.(\d+)\.feed_forward\.experts\.(\d+)\.w1\.weight", r"blocks.\1.mlp.experts.\2.gate.weight"),
    (r"layers\.(\d+)\.feed_forward\.experts\.(\d+)\.w2\.weight", r"blocks.\1.mlp.experts.\2.down.weight"),
    (r"layers\.(\d+)\.feed_forward\.experts\.(\d+)\.w3\.weight", r"blocks.\1.mlp.experts.\2.up.weight"),
    # Mixtral 8x7B as first published: experts below each other, w2 with rows and columns exchanged
    (r"layers\.(\d+)\.block_sparse_moe\.gate\.weight", r"blocks.\1.mlp.router.weight"),
    (r"layers\.(\d+)\.block_sparse_moe\.w1", r"blocks.\1.mlp.experts.*.gate.weight"),
    (r"layers\.(\d+)\.block_sparse_moe\.w2", r"blocks.\1.mlp.experts.*.down^T.weight"),
    (r"layers\.(\d+)\.block_sparse_moe\.w3", r"blocks.\1.mlp.experts.*.up.weight"),
]
# Tensors that are read apart or hold what the configuration says already.
_IGNORED = {
    r"rope_freqs\.weight": "GGUF: read as the rotary scaling",
    r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq": "rotary frequencies, computed from the configuration",
    r"rope\.freqs": "rotary frequencies, computed from the configuration",
}


def is_ignored(name: str) -> bool:
    """Whether a foreign tensor is known to add nothing to the configuration.

    >>> is_ignored("rope.freqs"), is_ignored("output.weight")
    (True, False)
    """
    return any(re.fullmatch(pattern, name) for pattern in _IGNORED)


def _canonical(table: list[tuple[str, str]], name: str) -> str | None:
    for pattern, ours in table:
        if re.fullmatch(pattern, name):
            return re.sub(pattern, ours, name)  # unlike Match.expand it keeps the template that it has read
    return None


def canonical_from_gguf(name: str) -> str | None:
    """Our name of a GGUF tensor, or None; `*` stands for all experts stacked in one tensor.

    >>> canonical_from_gguf("blk.3.ffn_down_exps.weight")
    'blocks.3.mlp.experts.*.down.weight'
    """
    return _canonical(_GGUF_TENSORS, name)


def canonical_from_hf(name: str) -> str | None:
    """Our name of a Hugging Face tensor, or None.

    >>> canonical_from_hf("model.layers.0.self_attn.q_proj.weight")
    'blocks.0.attn.q.weight'
    """
    return _canonical(_HF_TENSORS, name)


def canonical_from_meta(name: str) -> str | None:
    """Our name of a tensor in Meta's or Mistral's own layout, or None.

    >>> canonical_from_meta("layers.0.feed_forward.w3.weight")
    'blocks.0.mlp.up.weight'
    """
    return _canonical(_META_TENSORS, name)


_GGUF = {"ln1": "attn_norm", "ln2": "ffn_norm", "attn.q": "attn_q", "attn.k": "attn_k", "attn.v": "attn_v"}
_GGUF |= {"attn.o": "attn_output", "mlp.gate": "ffn_gate", "mlp.up": "ffn_up", "mlp.down": "ffn_down"}
_GGUF |= {"mlp.router": "ffn_gate_inp"}
_HF = {"ln1": "input_layernorm", "ln2": "post_attention_layernorm", "attn.q": "self_attn.q_proj"}
_HF |= {"attn.k": "self_attn.k_proj", "attn.v": "self_attn.v_proj", "attn.o": "self_attn.o_proj"}
_HF |= {"mlp.gate": "mlp.gate_proj", "mlp.up": "mlp.up_proj", "mlp.down": "mlp.down_proj"}
_HF |= {"mlp.router": "block_sparse_moe.gate"}
_EXPERT = {"gate": "w1", "up": "w3", "down": "w2"}
_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)\.weight")
_ONE_EXPERT = re.compile(r"mlp\.experts\.(\d+)\.(gate|up|down)")


def gguf_name(name: str) -> str:
    """GGUF's name of a tensor; all experts of a layer share one, as they are stacked there.

    >>> gguf_name("blocks.3.attn.o.weight"), gguf_name("blocks.0.mlp.experts.5.up.weight")
    ('blk.3.attn_output.weight', 'blk.0.ffn_up_exps.weight')
    """
    top = {"embed": "token_embd", "ln_final": "output_norm", "unembed": "output"}
    block = _BLOCK.fullmatch(name)
    if block is None:
        return f"{top[name.removesuffix('.weight')]}.weight"
    expert = _ONE_EXPERT.fullmatch(block[2])
    return f"blk.{block[1]}.{_GGUF[block[2]] if expert is None else f'ffn_{expert[2]}_exps'}.weight"


def hf_name(name: str) -> str:
    """Hugging Face's name of a tensor.

    >>> hf_name("blocks.3.attn.o.weight"), hf_name("blocks.0.mlp.experts.5.up.weight")
    ('model.layers.3.self_attn.o_proj.weight', 'model.layers.0.block_sparse_moe.experts.5.w3.weight')
    """
    top = {"embed": "model.embed_tokens", "ln_final": "model.norm", "unembed": "lm_head"}
    block = _BLOCK.fullmatch(name)
    if block is None:
        return f"{top[name.removesuffix('.weight')]}.weight"
    expert = _ONE_EXPERT.fullmatch(block[2])
    inner = _HF[block[2]] if expert is None else f"block_sparse_moe.experts.{expert[1]}.{_EXPERT[expert[2]]}"
    return f"model.layers.{block[1]}.{inner}.weight"
