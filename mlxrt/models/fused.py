"""Llama's build of a model in few operations: nine a layer, in place of some fifty.

Projections of one input are one product; norms, rope and the KV write are one operation of the
native kernels, so are the residual with the norm after it, and the gate with its activation.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
from mlx.nn.layers.base import Module
from mlx.nn.layers.positional_encoding import RoPE

from mlxrt import kernels
from mlxrt.attention import HeadRules, LayerShape, PagedLayer
from mlxrt.kernels.frequencies import inverse_frequencies
from mlxrt.models.merging import NotFusedError, merged

_MODULES = frozenset(f"mlx_lm.models.{name}" for name in ("llama", "qwen2", "qwen3"))
"""Modules whose layers are all of this build."""


class FusedLayer(Module):
    """One layer: the weights of mlx-lm's own, some of them merged."""

    def __init__(self, layer: Any, shape: LayerShape) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        attention, mlp = layer.self_attn, layer.mlp
        self.qkv = merged("q, k, v", [attention.q_proj, attention.k_proj, attention.v_proj])
        self.output = merged("o", [attention.o_proj])
        self.gate_up = merged("gate, up", [mlp.gate_proj, mlp.up_proj])
        self.down = merged("down", [mlp.down_proj])
        self.norm = layer.input_layernorm.weight
        self.mlp_norm = layer.post_attention_layernorm.weight
        self.eps = layer.post_attention_layernorm.eps
        self.scale = attention.scale
        self.rules = _rules(attention, shape)

    def __call__(
        self, hidden: mx.array, normed: mx.array, next_norm: mx.array, cache: PagedLayer
    ) -> tuple[mx.array, mx.array]:
        """Residual stream [T, hidden] and its norm for this layer; returns the same for the next,
        whose norm has the weight `next_norm`."""
        queries = cache.norm_rope_write(self.qkv(normed), self.rules)
        attended = cache.attend_rows(queries, scale=self.scale)
        hidden, normed = kernels.add_rms_norm(
            hidden, self.output(attended.flatten(1)), self.mlp_norm, eps=self.eps
        )
        activated = kernels.swiglu(self.gate_up(normed))
        return kernels.add_rms_norm(hidden, self.down(activated), next_norm, eps=self.eps)


class FusedStack(Module):
    """Stands in the place of a model's inner model, with the same weights."""

    def __init__(self, inner: Any, shapes: tuple[LayerShape, ...]) -> None:
        """Takes over the weights of `inner`, layer by layer, evaluated.

        Raises:
            NotFusedError: the model is of another build.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        _check(inner)
        self.embed_tokens = inner.embed_tokens
        self.norm = inner.norm.weight
        self.layers = [
            FusedLayer(layer, shape) for layer, shape in zip(inner.layers, shapes, strict=True)
        ]

    def __call__(self, inputs: mx.array, cache: list[PagedLayer], *ignored: None) -> mx.array:
        """Token ids [T, 1] to what the head takes, [T, 1, hidden]."""
        hidden = self.embed_tokens(inputs.flatten())
        first = self.layers[0]
        normed = mx.fast.rms_norm(hidden, first.norm, first.eps)
        norms = [layer.norm for layer in self.layers[1:]] + [self.norm]
        for layer, next_norm, each in zip(self.layers, norms, cache, strict=True):
            hidden, normed = layer(hidden, normed, next_norm, each)
        return normed[:, None]


def fuse(model: Module, name: str, shapes: tuple[LayerShape, ...]) -> None:
    """Puts a `FusedStack` in the place of the inner model, the attribute `name`, with dots on the
    way, and evaluates its weights; each layer's own are let go of as its merged ones are there.

    Args:
        shapes: KV of each layer.

    Raises:
        NotFusedError: the model can't be fused; it is as it was.
    """
    *path, last = name.split(".")
    holder: Any = model
    for part in path:
        holder = getattr(holder, part)
    inner = getattr(holder, last)
    stack = FusedStack(inner, shapes)
    _try(stack, shapes[0])
    setattr(holder, last, stack)
    inner.layers = []
    for layer in stack.layers:
        mx.eval(layer.parameters())  # type: ignore[no-untyped-call]


def _try(stack: FusedStack, shape: LayerShape) -> None:
    """Builds and evaluates each fused operation once, on rows of nothing but zeros."""
    layer, rules = stack.layers[0], stack.layers[0].rules
    dtype = layer.norm.dtype
    heads = (rules.num_q_heads + 2 * rules.num_kv_heads) * shape.key_width
    pool = (2, 8, rules.num_kv_heads, shape.key_width)
    try:
        queries, *_ = kernels.norm_rope_write(
            mx.zeros((1, heads), dtype),
            rules.q_norm,
            rules.k_norm,
            rules.eps,
            mx.zeros(1, mx.int32),
            rules.inverse_frequencies,
            rules.rope_scale,
            rules.traditional,
            mx.zeros(pool, shape.dtype),
            mx.zeros(pool, shape.dtype),
            mx.zeros(1, mx.int64),
            rules.num_q_heads,
            rules.num_kv_heads,
        )
        row = mx.zeros((1, layer.norm.shape[0]), dtype)
        mx.eval(queries, kernels.add_rms_norm(row, row, layer.norm, eps=layer.eps))
        mx.eval(kernels.swiglu(mx.zeros((1, 64), dtype)))
    except (RuntimeError, ValueError) as error:
        raise NotFusedError(str(error)) from error


def _check(inner: Any) -> None:
    module = type(inner).__module__
    if module not in _MODULES:
        raise NotFusedError(f"{module.removeprefix('mlx_lm.models.')} is of another build")
    epsilons = {layer.input_layernorm.eps for layer in inner.layers}
    epsilons |= {layer.post_attention_layernorm.eps for layer in inner.layers} | {inner.norm.eps}
    if len(epsilons) != 1:
        raise NotFusedError("norms of different epsilons")


def _rules(attention: Any, shape: LayerShape) -> HeadRules:
    frequencies, scale = _rope(attention.rope)
    if shape.key_width != shape.value_width:
        raise NotFusedError("keys and values of different widths")
    q_norm, k_norm = getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)
    return HeadRules(
        num_q_heads=attention.n_heads,
        num_kv_heads=shape.num_kv_heads,
        inverse_frequencies=frequencies,
        rope_scale=scale,
        traditional=attention.rope.traditional,
        q_norm=None if q_norm is None else q_norm.weight,
        k_norm=None if k_norm is None else k_norm.weight,
        eps=0.0 if q_norm is None else q_norm.eps,
    )


def _rope(rope: Any) -> tuple[mx.array, float]:
    """The inverse frequencies of mlx-lm's rope module, and what positions are multiplied by."""
    kind = type(rope).__name__
    if type(rope) is RoPE:
        return inverse_frequencies(rope.dims, base=rope.base), rope.scale
    if kind == "Llama3RoPE" or (kind == "YarnRoPE" and rope.mscale == 1.0):
        return inverse_frequencies(rope.dims, freqs=rope._freqs), 1.0
    raise NotFusedError(f"rope of kind {kind}")
