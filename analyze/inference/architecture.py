"""Parameters and KV cache of a model, counted from the fields of its config.json.

Counted tensor by tensor as the public model definitions have them (transformers 4.57, modeling_<type>.py), for the
types below; None for any other, and where a field is missing. Vision towers, adapters and heads for several next
tokens are not counted: a file that has them has another type, or says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from gpuaudit.analyze.inference.memory import KvShape

Fields = Mapping[str, str]
"""Fields of config.json as text, nested ones with dots (``quantization_config.bits``)."""


@dataclass(frozen=True)
class Counted:
    """Parameters of a model: all, those a token uses (None for a dense model), and how experts are chosen."""

    total: int
    active: int | None = None
    experts: int | None = None
    experts_per_token: int | None = None


class _Missing(Exception):
    """A field that the count needs is not there."""


class _Config:
    """Fields as numbers and switches."""

    def __init__(self, fields: Fields) -> None:
        self._fields = fields

    def number(self, *names: str) -> int:
        """The first of the fields that is a whole number above 0."""
        found = self.optional(*names)
        if found is None:
            raise _Missing(names[0])
        return found

    def optional(self, *names: str) -> int | None:
        for name in names:
            text = self._fields.get(name, "").strip()
            if text.isascii() and text.isdigit() and len(text) <= 15 and int(text) > 0:
                return int(text)
        return None

    def switch(self, name: str, default: bool) -> bool:
        return {"true": True, "false": False}.get(self._fields.get(name, "").strip().lower(), default)

    def text(self, name: str) -> str:
        return self._fields.get(name, "").strip()

    @property
    def head_dim(self) -> int:
        given = self.optional("head_dim")
        return given if given is not None else self.number("hidden_size") // self.number("num_attention_heads")

    @property
    def kv_heads(self) -> int:
        return self.optional("num_key_value_heads") or self.number("num_attention_heads")


def counted(fields: Fields) -> Counted | None:
    """Parameters of the model that ``fields`` describe; None where its type is not known or a field is missing."""
    config = _Config(fields)
    count = _COUNTS.get(config.text("model_type").lower())
    if count is None:
        return None
    try:
        return count(config)
    except _Missing:
        return None


def _embedding(c: _Config, tied: bool) -> int:
    """Table of the vocabulary, once more as the output layer unless tied, and the last norm."""
    table = c.number("vocab_size") * c.number("hidden_size")
    return table * (1 if c.switch("tie_word_embeddings", tied) else 2) + c.number("hidden_size")


def _attention(c: _Config, *, qkv_bias: bool, out_bias: bool, head_norms: bool) -> int:
    hidden, heads, kv, dim = c.number("hidden_size"), c.number("num_attention_heads"), c.kv_heads, c.head_dim
    out = hidden * dim * (2 * heads + 2 * kv)
    out += (heads + 2 * kv) * dim if qkv_bias else 0
    out += hidden if out_bias else 0
    return out + (2 * dim if head_norms else 0)


def _mlp(c: _Config, width: int) -> int:
    """Gate, up and down projection."""
    hidden = c.number("hidden_size")
    return 3 * hidden * width + (2 * width + hidden if c.switch("mlp_bias", False) else 0)


def _dense(*, tied: bool, norms: int, qkv_bias: bool | None, head_norms: bool) -> Callable[[_Config], Counted]:
    """A dense decoder; ``norms`` per layer, ``qkv_bias`` None where attention_bias decides."""

    def count(c: _Config) -> Counted:
        bias = c.switch("attention_bias", False)
        q = bias if qkv_bias is None else qkv_bias
        layer = _attention(c, qkv_bias=q, out_bias=bias if qkv_bias is None else False, head_norms=head_norms)
        layer += _mlp(c, c.number("intermediate_size")) + norms * c.number("hidden_size")
        return Counted(_embedding(c, tied) + c.number("num_hidden_layers") * layer)

    return count


def _mixture(c: _Config, dense: int, dense_layers: int, width: int, extra_per_layer: int) -> Counted:
    """``dense``: everything but the experts and routers; ``width`` of one expert; every other layer has experts."""
    experts = c.number("num_local_experts", "num_experts", "n_routed_experts")
    used = c.number("num_experts_per_tok")
    layers = c.number("num_hidden_layers") - dense_layers
    one = 3 * c.number("hidden_size") * width
    shared = dense + layers * (experts * c.number("hidden_size") + extra_per_layer)
    return Counted(shared + layers * experts * one, shared + layers * used * one, experts, used)


def _mixtral(c: _Config) -> Counted:
    layer = _attention(c, qkv_bias=False, out_bias=False, head_norms=False) + 2 * c.number("hidden_size")
    dense = _embedding(c, False) + c.number("num_hidden_layers") * layer
    return _mixture(c, dense, 0, c.number("intermediate_size"), 0)


def _qwen3_moe(c: _Config) -> Counted:
    if c.text("mlp_only_layers") not in {"", "[]"} or c.optional("decoder_sparse_step") not in {None, 1}:
        raise _Missing("mlp_only_layers")
    bias = c.switch("attention_bias", False)
    layer = _attention(c, qkv_bias=bias, out_bias=bias, head_norms=True) + 2 * c.number("hidden_size")
    dense = _embedding(c, False) + c.number("num_hidden_layers") * layer
    return _mixture(c, dense, 0, c.number("moe_intermediate_size"), 0)


def _deepseek(c: _Config) -> Counted:
    """Latent attention (MLA), the first layers dense, then shared and routed experts."""
    hidden, heads = c.number("hidden_size"), c.number("num_attention_heads")
    nope, rope, value = c.number("qk_nope_head_dim"), c.number("qk_rope_head_dim"), c.number("v_head_dim")
    latent, query = c.number("kv_lora_rank"), c.optional("q_lora_rank")
    wide = heads * (nope + rope)
    attention = hidden * wide if query is None else hidden * query + query + query * wide
    attention += hidden * (latent + rope) + latent + latent * heads * (nope + value) + heads * value * hidden
    if c.optional("moe_layer_freq") not in {None, 1}:
        raise _Missing("moe_layer_freq")
    layers, first = c.number("num_hidden_layers"), c.optional("first_k_dense_replace") or 0
    dense = _embedding(c, False) + layers * (attention + 2 * hidden) + first * _mlp(c, c.number("intermediate_size"))
    width = c.number("moe_intermediate_size")
    always = 3 * hidden * width * (c.optional("n_shared_experts") or 0)
    correction = c.number("n_routed_experts") if c.text("topk_method") == "noaux_tc" else 0
    return _mixture(c, dense, first, width, always + correction)


_LLAMA = _dense(tied=False, norms=2, qkv_bias=None, head_norms=False)
_COUNTS: dict[str, Callable[[_Config], Counted]] = {
    "llama": _LLAMA,
    "mistral": _dense(tied=False, norms=2, qkv_bias=False, head_norms=False),
    "qwen2": _dense(tied=False, norms=2, qkv_bias=True, head_norms=False),
    "qwen3": _dense(tied=False, norms=2, qkv_bias=None, head_norms=True),
    "gemma": _dense(tied=True, norms=2, qkv_bias=None, head_norms=False),
    "gemma2": _dense(tied=True, norms=4, qkv_bias=None, head_norms=False),
    "gemma3_text": _dense(tied=True, norms=4, qkv_bias=None, head_norms=True),
    "mixtral": _mixtral,
    "qwen3_moe": _qwen3_moe,
    "deepseek_v2": _deepseek,
    "deepseek_v3": _deepseek,
    "kimi_k2": _deepseek,
}

_GEMMA3_PATTERN = 6
"""Gemma 3: every sixth layer sees all tokens (sliding_window_pattern of its configuration class)."""


def kv_shape(fields: Fields) -> KvShape | None:
    """What a sequence keeps in the KV cache; None where the type is not known or a field is missing.

    Latent attention keeps one vector of kv_lora_rank + qk_rope_head_dim elements per layer and token, written here as
    one head with a key and a value of half of that each.
    """
    config = _Config(fields)
    kind = config.text("model_type").lower()
    if kind not in _COUNTS:
        return None
    try:
        layers = config.number("num_hidden_layers")
        if _COUNTS[kind] is _deepseek:
            latent = config.number("kv_lora_rank") + config.number("qk_rope_head_dim")
            return KvShape(layers, 1, latent // 2) if latent % 2 == 0 else None
        window, windowed = _window(config, kind, layers)
        return KvShape(layers, config.kv_heads, config.head_dim, window, windowed)
    except _Missing:
        return None


def _window(c: _Config, kind: str, layers: int) -> tuple[int | None, int | None]:
    """(window, layers that have it); half given where there is a window and its layers are not known."""
    window = c.optional("sliding_window")
    if window is None or (kind.startswith("qwen") and not c.switch("use_sliding_window", False)):
        return None, None
    listed = c.text("layer_types")
    if listed:
        return window, listed.count("sliding_attention") or None
    if kind == "gemma3_text":
        return window, layers - layers // (c.optional("sliding_window_pattern") or _GEMMA3_PATTERN)
    if kind == "gemma2":
        return window, -(-layers // 2)
    return window, layers if kind in {"mistral", "mixtral"} else None
