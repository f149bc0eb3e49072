"""The KV pool's arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx


@dataclass(frozen=True, slots=True)
class LayerShape:
    """KV of one layer: `key_width` and `value_width` are per head."""

    num_kv_heads: int
    key_width: int
    value_width: int
    dtype: mx.Dtype

    def block_bytes(self, block_size: int) -> int:
        """Bytes of one block of this layer, K and V."""
        width = self.key_width + self.value_width
        return block_size * self.num_kv_heads * width * self.dtype.size


def allocate_pool(
    shapes: Sequence[LayerShape], num_blocks: int, block_size: int
) -> list[tuple[mx.array, mx.array]]:
    """Allocates and evaluates one K and one V array per layer, on the calling (the engine's)
    thread.

    Returns:
        `(keys, values)` per layer, each `[num_blocks, block_size, num_kv_heads, width]`.
    """
    pool = []
    for shape in shapes:
        leading = (num_blocks, block_size, shape.num_kv_heads)
        keys = mx.zeros((*leading, shape.key_width), shape.dtype)
        values = mx.zeros((*leading, shape.value_width), shape.dtype)
        # Layer by layer, so that no temporary of the whole pool's size ever lives.
        mx.eval(keys, values)
        pool.append((keys, values))
    return pool
