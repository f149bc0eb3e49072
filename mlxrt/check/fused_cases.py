"""Random calls of the fused operations: `norm_rope_write`, `add_rms_norm`, `swiglu`.

Symbols in shapes are those of `mlxrt/kernels/_native.pyi`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from mlxrt.check.kernel_cases import BLOCK_SIZES, HEAD_DIMS, ROUNDING

ROUNDINGS = 2
"""In a row, each of which a sum in another order may turn: those of a norm and of its weight."""


@dataclass(frozen=True, slots=True)
class NormRopeCall:
    """The arguments of norm_rope_write but the pools, whose shape and dtype are these."""

    arguments: dict[str, Any]
    pool_shape: tuple[int, int, int, int]
    pool_dtype: mx.Dtype

    def run(self, operation: Callable[..., tuple[mx.array, ...]]) -> tuple[mx.array, ...]:
        """Calls `operation` over new pools full of NaN."""
        pools = [mx.full(self.pool_shape, float("nan"), self.pool_dtype) for _ in range(2)]
        return operation(**self.arguments, keys=pools[0], values=pools[1])


@dataclass(frozen=True, slots=True)
class RowCalls:
    """The arguments of add_rms_norm and of swiglu."""

    x: mx.array
    residual: mx.array
    weight: mx.array
    gate_up: mx.array


def draw_norm_rope(
    rng: np.random.Generator,
    *,
    dtype: mx.Dtype,
    rows_max: int = 70,
    head_dims: Sequence[int] = HEAD_DIMS,
    position_max: int = 2000,
    pool_dtype: mx.Dtype | None = None,
) -> NormRopeCall:
    """Draws a call: with and without norms, all or some entries turning, some rows skipped."""
    head_dim, block_size = int(rng.choice(head_dims)), int(rng.choice(BLOCK_SIZES[:3]))
    num_kv_heads, group = int(rng.integers(1, 4)), int(rng.integers(1, 5))
    rows = int(rng.choice([1, int(rng.integers(1, rows_max + 1))]))
    num_blocks = rows // block_size + 2
    pairs = int(rng.choice([head_dim // 2, head_dim // 2, head_dim // 8 * 2]))
    slots = rng.permutation(num_blocks * block_size)[:rows].astype(np.int64)
    slots[rng.random(rows) < 0.1] = -1
    heads = group * num_kv_heads + 2 * num_kv_heads
    norms = [_normal(rng, (head_dim,), dtype) if rng.integers(3) else None for _ in range(2)]
    return NormRopeCall(
        {
            "qkv": _normal(rng, (rows, heads * head_dim), dtype),
            "q_norm": norms[0],
            "k_norm": norms[1],
            "eps": float(rng.choice([1e-6, 1e-5])),
            "positions": mx.array(rng.integers(0, position_max + 1, rows).astype(np.int32)),
            "inverse_frequencies": mx.array(draw_inverse_frequencies(rng, pairs)),
            "scale": float(rng.choice([1.0, 1.0, 0.25])),
            "traditional": bool(rng.integers(2)),
            "slots": mx.array(slots),
            "num_q_heads": group * num_kv_heads,
            "num_kv_heads": num_kv_heads,
        },
        (num_blocks, block_size, num_kv_heads, head_dim),
        pool_dtype or dtype,
    )


def draw_inverse_frequencies(rng: np.random.Generator, pairs: int) -> np.ndarray[Any, Any]:
    """Draws [pairs] float32 from 2^-16 to 1.4, each of which comes back from its reciprocal.

    A mantissa below the root of 2 is what makes it so; `reference` needs it.
    """
    powers = np.exp2(-rng.integers(0, 17, pairs).astype(np.float32))
    drawn = (powers * rng.uniform(1.0, 1.4, pairs)).astype(np.float32)
    assert np.array_equal(np.float32(1) / (np.float32(1) / drawn), drawn)
    return drawn


def draw_rows(rng: np.random.Generator, *, dtype: mx.Dtype, rows_max: int = 70) -> RowCalls:
    """Draws calls: sizes from 8 to a few thousand, gates of every magnitude."""
    rows = int(rng.choice([1, int(rng.integers(1, rows_max + 1))]))
    size = 8 * int(rng.choice([int(rng.integers(1, 40)), 128, int(rng.integers(1, 700))]))
    gate_up = rng.standard_normal((rows, 2 * size)) * rng.choice([1.0, 10.0])
    return RowCalls(
        x=_normal(rng, (rows, size), dtype),
        residual=_normal(rng, (rows, size), dtype),
        weight=_normal(rng, (size,), dtype),
        gate_up=mx.array(gate_up.astype(np.float32)).astype(dtype),
    )


def _normal(rng: np.random.Generator, shape: tuple[int, ...], dtype: mx.Dtype) -> mx.array:
    return mx.array(rng.standard_normal(shape).astype(np.float32)).astype(dtype)


def excess(actual: mx.array, expected: mx.array, *, of_row: bool = False) -> float:
    """Returns the largest difference, in multiples of what is allowed: above 1 they disagree.

    Infinite where only one of them is NaN, or shapes or types differ.

    Args:
        of_row: Allow what the largest entry of a row (the last axis) may differ by, since entries
            of a head are mixed; else what the entry itself may.
    """
    if actual.dtype != expected.dtype or actual.shape != expected.shape:
        return float("inf")
    a, b = (np.array(x.astype(mx.float32)).astype(np.float64) for x in (actual, expected))
    if not np.array_equal(np.isnan(a), np.isnan(b)):
        return float("inf")
    if not a.size:
        return 0.0
    size = np.nan_to_num(np.abs(b), nan=0.0, posinf=0.0)
    scale = size.max(axis=-1, keepdims=True) if of_row else size
    allowed = ROUNDINGS * ROUNDING[expected.dtype] * scale + 1e-7
    with np.errstate(invalid="ignore"):
        differences = np.where(a == b, 0.0, np.abs(a - b))
    return float(np.nanmax(differences / allowed, initial=0.0))


def norm_rope_excess(
    call: NormRopeCall, run: Callable[..., Any], truth: Callable[..., Any]
) -> float:
    """Returns the largest excess of `run` over `truth`: queries, keys and values."""
    actual, expected = call.run(run), call.run(truth)
    pairs = zip(actual, expected, strict=True)
    return max(excess(a, e, of_row=True) for a, e in pairs)


def rows_excess(rows: RowCalls, run: Any, truth: Any) -> float:
    """Returns the largest excess of add_rms_norm and swiglu of `run`, a module, over `truth`'s."""
    arguments = rows.x, rows.residual, rows.weight, 1e-6
    actual = *run.add_rms_norm(*arguments), run.swiglu(rows.gate_up)
    expected = *truth.add_rms_norm(*arguments), truth.swiglu(rows.gate_up)
    return max(excess(a, e) for a, e in zip(actual, expected, strict=True))
