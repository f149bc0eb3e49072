"""What the fused write of a layer does to its heads on the way to the pool."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx


@dataclass(frozen=True, slots=True)
class HeadRules:
    """Norms and rope of one layer's heads; D is the width of a head.

    Attributes:
        num_q_heads, num_kv_heads: heads of queries, and of keys and of values.
        inverse_frequencies: [n] float32, n at most D / 2; the first 2 n entries of a head turn.
        rope_scale: what positions are multiplied by.
        traditional: whether neighbours turn together, rather than halves.
        q_norm, k_norm: [D], weights of the heads' RMS norms; None for none.
        eps: of the norms.
    """

    num_q_heads: int
    num_kv_heads: int
    inverse_frequencies: mx.array
    rope_scale: float
    traditional: bool
    q_norm: mx.array | None = None
    k_norm: mx.array | None = None
    eps: float = 0.0
