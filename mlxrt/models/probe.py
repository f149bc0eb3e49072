"""Finds the shape and the window of each layer's KV by building, but not evaluating, a forward of
one row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx.nn.layers.base import Module

from mlxrt.attention import LayerCall, LayerShape, WindowMask
from mlxrt.models.errors import ModelError


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What a forward of one row shows.

    Attributes:
        layers: KV of each layer.
        calls: what each layer asks of attention.
        windows: positions that a row of each layer sees, itself included; 0 for all.
        query_heads, query_width: the most heads of a layer, and the widest queries of all heads.
        vocabulary_size: width of the logits.
    """

    layers: tuple[LayerShape, ...]
    calls: tuple[LayerCall, ...]
    windows: tuple[int, ...]
    query_heads: int
    query_width: int
    vocabulary_size: int

    @property
    def key_width(self) -> int:
        """The widest keys or values of a layer, all heads."""
        return max(
            layer.num_kv_heads * max(layer.key_width, layer.value_width) for layer in self.layers
        )


class _ProbeLayer:
    """A cache that records what it is given."""

    def __init__(self) -> None:
        self.offset = mx.zeros(1, mx.int32)
        self.shape: LayerShape | None = None
        self.mask: Any = None
        self.heads = self.query_width = 0
        self.call: LayerCall | None = None
        self.attend_count = 0

    def make_mask(
        self, row_length: int, return_array: bool = False, window_size: Any = None
    ) -> WindowMask | None:
        return WindowMask(window_size) if window_size else None

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        self.shape = LayerShape(keys.shape[1], keys.shape[3], values.shape[3], keys.dtype)
        return keys, values

    def attend(
        self, queries: mx.array, *, scale: float, mask: Any, sinks: mx.array | None
    ) -> mx.array:
        self.attend_count += 1
        self.mask = mask
        self.heads, self.query_width = queries.shape[1], queries.shape[1] * queries.shape[3]
        assert self.shape is not None
        window = mask.window if isinstance(mask, WindowMask) else 0
        self.call = LayerCall(self.shape, self.heads, queries.dtype, window, sinks is not None)
        return mx.zeros((*queries.shape[:3], self.shape.value_width), queries.dtype)


def probe(model: Module) -> ModelShape:
    """Builds a forward of one row through caches that record; the seam must be installed.

    Raises:
        ModelError: a layer's attention does not go through `update_and_fetch` and then the seam,
            once each, or brings a mask of its own.
    """
    caches = [_ProbeLayer() for _ in model.layers]
    logits = model(mx.zeros((1, 1), mx.int32), cache=caches)
    shapes, calls = [], []
    for index, cache in enumerate(caches):
        if cache.shape is None or cache.call is None or cache.attend_count != 1:
            raise ModelError(f"layer {index}: its attention can't be led to the paged pool")
        if cache.mask is not None and not isinstance(cache.mask, WindowMask):
            raise ModelError(f"layer {index}: it masks by a {type(cache.mask).__name__} of its own")
        shapes.append(cache.shape)
        calls.append(cache.call)
    return ModelShape(
        layers=tuple(shapes),
        calls=tuple(calls),
        windows=tuple(0 if cache.mask is None else cache.mask.window for cache in caches),
        query_heads=max(cache.heads for cache in caches),
        query_width=max(cache.query_width for cache in caches),
        vocabulary_size=logits.shape[-1],
    )
