"""Finds the shape of each layer's KV by building, but not evaluating, a forward of one row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx.nn.layers.base import Module

from mlxrt.attention import LayerShape
from mlxrt.models.errors import ModelError


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What a forward of one row shows.

    Attributes:
        layers: KV of each layer.
        vocabulary_size: width of the logits.
    """

    layers: tuple[LayerShape, ...]
    vocabulary_size: int


class _ProbeLayer:
    """A cache that records what it is given."""

    def __init__(self) -> None:
        self.offset = mx.zeros(1, mx.int32)
        self.shape: LayerShape | None = None
        self.attend_count = 0

    def make_mask(
        self, row_length: int, return_array: bool = False, window_size: Any = None
    ) -> None:
        return None

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        self.shape = LayerShape(keys.shape[1], keys.shape[3], values.shape[3], keys.dtype)
        return keys, values

    def attend(
        self, queries: mx.array, *, scale: float, mask: Any, sinks: mx.array | None
    ) -> mx.array:
        self.attend_count += 1
        assert self.shape is not None
        return mx.zeros((*queries.shape[:3], self.shape.value_width), queries.dtype)


def probe(model: Module, layer_count: int) -> ModelShape:
    """Builds a forward of one row through caches that record; the seam must be installed.

    Raises:
        ModelError: a layer's attention does not go through `update_and_fetch` and then the seam,
            once each.
    """
    caches = [_ProbeLayer() for _ in range(layer_count)]
    logits = model(mx.zeros((1, 1), mx.int32), cache=caches)
    shapes = []
    for index, cache in enumerate(caches):
        if cache.shape is None or cache.attend_count != 1:
            raise ModelError(f"layer {index}: its attention can't be led to the paged pool")
        shapes.append(cache.shape)
    return ModelShape(tuple(shapes), logits.shape[-1])
