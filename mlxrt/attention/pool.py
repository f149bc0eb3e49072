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
    shapes: Sequence[LayerShape], num_blocks: int, block_size: int, *, poison: bool
) -> list[tuple[mx.array, mx.array]]:
    """Allocates and evaluates one K and one V array per layer, on the calling (the engine's)
    thread.

    Args:
        poison: fill with NaN, to prove that nothing past a context is ever multiplied.

    Returns:
        `(keys, values)` per layer, each `[num_blocks, block_size, num_kv_heads, width]`.
    """
    fill = float("nan") if poison else 0.0
    pool = []
    for shape in shapes:
        leading = (num_blocks, block_size, shape.num_kv_heads)
        keys = mx.full((*leading, shape.key_width), fill, dtype=shape.dtype)
        values = mx.full((*leading, shape.value_width), fill, dtype=shape.dtype)
        # Layer by layer, so that no temporary of the whole pool's size ever lives.
        mx.eval(keys, values)
        pool.append((keys, values))
    return pool
