"""Random calls of the native operations: pools full of NaN, finite only where a row may read.

Symbols in shapes are those of `mlxrt/kernels/_native.pyi`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

DTYPES = (mx.float32, mx.float16, mx.bfloat16)
HEAD_DIMS = (64, 80, 96, 112, 128, 192, 256)
BLOCK_SIZES = (8, 16, 32, 64, 128, 256)
GROUPS = (1, 2, 3, 4, 5, 6, 7, 8, 16)

ROUNDING = {mx.float32: 4e-6, mx.float16: 2.0**-10, mx.bfloat16: 2.0**-7}
"""Allowed difference of two results, relative to the value: one rounding of the type; of float32,
what another order of its sums does."""
ABSOLUTE = 4e-5
"""Allowed difference beside that, where sums cancel."""


@dataclass(frozen=True, slots=True)
class AttentionCase:
    """One call of paged_attention.

    Attributes:
        contexts: positions of each sequence, this call's rows included.
        rows: rows of each sequence, at most its context.
        padding_rows: rows after those of the sequences.
    """

    contexts: tuple[int, ...]
    rows: tuple[int, ...]
    num_kv_heads: int
    group: int
    head_dim: int
    block_size: int
    dtype: mx.Dtype
    window: int = 0
    softcap: float = 0.0
    with_sinks: bool = False
    padding_rows: int = 0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class AttentionCall:
    """The arguments of a case, as paged_attention and its reference take them."""

    arrays: tuple[mx.array, ...]
    scale: float
    window: int
    softcap: float
    sinks: mx.array | None

    def run(self, attention: Callable[..., mx.array]) -> mx.array:
        """Calls `attention`."""
        return attention(
            *self.arrays, scale=self.scale, window=self.window, softcap=self.softcap,
            sinks=self.sinks,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class WriteCall:
    """The arguments of kv_write: pools, rows, slots."""

    arrays: tuple[mx.array, ...]


@dataclass(frozen=True, slots=True)
class SampleCall:
    """The arguments of sample: logits and rules."""

    logits: mx.array
    rules: mx.array


@dataclass(frozen=True, slots=True)
class CopyCall:
    """The arguments of copy_blocks."""

    pools: list[mx.array]
    sources: mx.array
    destinations: mx.array


def draw_attention(
    rng: np.random.Generator,
    *,
    context_max: int,
    dtypes: Sequence[mx.Dtype] = DTYPES,
    head_dims: Sequence[int] = HEAD_DIMS,
    block_sizes: Sequence[int] = BLOCK_SIZES,
    groups: Sequence[int] = GROUPS,
    rows_max: int = 40,
) -> AttentionCase:
    """Draws a case: sequences without rows, with one and with more, ending anywhere, some at
    `context_max`.
    """
    contexts, rows = [], []
    for _ in range(int(rng.integers(1, 5))):
        context = int(rng.choice([int(rng.integers(0, context_max + 1)), context_max, 1]))
        count = int(rng.choice([1, 1, int(rng.integers(0, rows_max + 1))]))
        contexts.append(context)
        rows.append(min(count, context))
    return AttentionCase(
        contexts=tuple(contexts),
        rows=tuple(rows),
        num_kv_heads=int(rng.integers(1, 4)),
        group=int(rng.choice(groups)),
        head_dim=int(rng.choice(head_dims)),
        block_size=int(rng.choice(block_sizes)),
        dtype=dtypes[int(rng.integers(len(dtypes)))],
        window=int(rng.choice([0, 0, int(rng.integers(1, context_max + 1))])),
        softcap=float(rng.choice([0.0, 0.0, 1.5, 30.0])),
        with_sinks=bool(rng.integers(2)),
        padding_rows=int(rng.choice([0, 0, 1, 3])),
        seed=int(rng.integers(1 << 31)),
    )


def build_attention(case: AttentionCase) -> AttentionCall:
    """Builds the arrays. Blocks are scattered; what no row may read is NaN, padding rows too."""
    rng = np.random.default_rng(case.seed)
    blocks_each = [-(-context // case.block_size) for context in case.contexts]
    free = list(rng.permutation(np.arange(1, sum(blocks_each) + 3)))
    tables = np.zeros((len(case.contexts), max([1, *blocks_each]) + 1), np.int32)
    shape = (len(free) + 1, case.block_size, case.num_kv_heads, case.head_dim)
    pools = [np.full(shape, np.nan, np.float32) for _ in range(2)]
    for s, (context, count) in enumerate(zip(case.contexts, case.rows, strict=True)):
        lowest = max(0, context - count - case.window + 1) if case.window else 0
        for b in range(lowest // case.block_size, blocks_each[s]):
            tables[s, b] = block = free.pop()  # blocks outside the window stay 0, full of NaN
            first, last = b * case.block_size, min((b + 1) * case.block_size, context)
            held = slice(max(lowest, first) - first, last - first)
            for pool in pools:
                pool[block, held] = rng.standard_normal(pool[block, held].shape)
    num_q_heads = case.num_kv_heads * case.group
    total = sum(case.rows)
    q = rng.standard_normal((total + case.padding_rows, num_q_heads, case.head_dim))
    q[total:] = np.nan
    sinks = mx.array(rng.standard_normal(num_q_heads).astype(np.float32))
    starts = np.concatenate([[0], np.cumsum(case.rows)]).astype(np.int32)
    return AttentionCall(
        arrays=(
            mx.array(q.astype(np.float32)).astype(case.dtype),
            mx.array(pools[0]).astype(case.dtype),
            mx.array(pools[1]).astype(case.dtype),
            mx.array(tables),
            mx.array(starts),
            mx.array(np.array(case.contexts, np.int32)),
        ),
        scale=case.head_dim**-0.5,
        window=case.window,
        softcap=case.softcap,
        sinks=sinks if case.with_sinks else None,
    )


def draw_write(rng: np.random.Generator, rows_max: int = 200) -> WriteCall:
    """Draws a call of kv_write: distinct slots, some rows skipped."""
    dtype = DTYPES[int(rng.integers(len(DTYPES)))]
    block_size, heads = int(rng.choice(BLOCK_SIZES[:4])), int(rng.integers(1, 5))
    key_dim, value_dim = (int(rng.choice(HEAD_DIMS)) for _ in range(2))
    rows = int(rng.integers(1, rows_max + 1))
    num_blocks = rows // block_size + 3
    slots = rng.permutation(num_blocks * block_size)[:rows].astype(np.int64)
    slots[rng.random(rows) < 0.1] = -1
    return WriteCall(
        (
            _normal(rng, (num_blocks, block_size, heads, key_dim), dtype),
            _normal(rng, (num_blocks, block_size, heads, value_dim), dtype),
            _normal(rng, (rows, heads, key_dim), dtype),
            _normal(rng, (rows, heads, value_dim), dtype),
            mx.array(slots),
        )
    )


def draw_sample(
    rng: np.random.Generator, vocabulary_max: int = 5000, rows_max: int = 8
) -> SampleCall:
    """Draws a call of sample: flat and steep rows, ties, tokens that a mask forbids, NaN and
    infinities, every rule alone and with others, greedy rows and rows past the rules.
    """
    rows = int(rng.integers(1, rows_max + 1))
    vocabulary = int(rng.choice([1, 2, 31, 300, 513, vocabulary_max]))
    logits = rng.standard_normal((rows, min(vocabulary, vocabulary_max)))
    logits *= rng.choice([0.0, 0.01, 1.0, 5.0, 40.0], (rows, 1))
    coarse = rng.random(rows) < 0.3
    logits[coarse] = np.round(logits[coarse])
    logits[(rng.random(logits.shape) < 0.4) & (rng.random((rows, 1)) < 0.3)] = -np.inf
    for odd in (np.nan, np.inf):
        if rng.random() < 0.1:
            logits[rng.integers(rows), rng.integers(logits.shape[1])] = odd
    rule_rows = int(rng.choice([rows, rows, max(1, rows - 1), rows + 2]))
    columns = [
        rng.choice([0.0, 1.0, 1.0, 0.7, 0.1, 2.5, 2.0**-126], rule_rows),
        rng.choice([0, 0, 1, 2, 40, logits.shape[1]], rule_rows),
        rng.choice([1.0, 1.0, 0.95, 0.5, 1e-3, 1e-9], rule_rows),
        rng.choice([np.inf, np.inf, 3.0, 0.7, 0.0], rule_rows),
        rng.choice([0.0, 1.0 - 2.0**-24, -1.0], rule_rows, p=[0.05, 0.05, 0.9]),
    ]
    drawn = rng.integers(0, 1 << 24, rule_rows) * 2.0**-24
    columns[4] = np.where(columns[4] < 0, drawn, columns[4])
    dtype = DTYPES[int(rng.integers(len(DTYPES)))]
    rules = np.stack(columns, axis=1).astype(np.float32)
    return SampleCall(mx.array(logits.astype(np.float32)).astype(dtype), mx.array(rules))


def draw_copy(rng: np.random.Generator, num_blocks_max: int = 30) -> CopyCall:
    """Draws a call of copy_blocks: chains and swaps among them, some pairs skipped."""
    num_blocks = int(rng.integers(2, num_blocks_max + 1))
    pools = [
        _normal(
            rng,
            (num_blocks, int(rng.choice(BLOCK_SIZES[:3])), 2, int(rng.choice(HEAD_DIMS[:3]))),
            DTYPES[int(rng.integers(len(DTYPES)))],
        )
        for _ in range(int(rng.integers(1, 4)))
    ]
    pairs = int(rng.integers(1, num_blocks + 1))
    sources = rng.integers(-1, num_blocks, pairs).astype(np.int32)
    destinations = rng.permutation(num_blocks)[:pairs].astype(np.int32)
    return CopyCall(pools, mx.array(sources), mx.array(destinations))


def _normal(rng: np.random.Generator, shape: tuple[int, ...], dtype: mx.Dtype) -> mx.array:
    return mx.array(rng.standard_normal(shape).astype(np.float32)).astype(dtype)


def excess(actual: mx.array, expected: mx.array) -> float:
    """Returns the largest difference, in multiples of what is allowed: above 1 they disagree.

    Infinite where only one of them is NaN, or shapes or types differ.
    """
    if actual.dtype != expected.dtype or actual.shape != expected.shape:
        return float("inf")
    a, b = (np.array(x.astype(mx.float32)).astype(np.float64) for x in (actual, expected))
    if not np.array_equal(np.isnan(a), np.isnan(b)):
        return float("inf")
    allowed = ABSOLUTE + ROUNDING[expected.dtype] * np.abs(b)
    return float(np.nanmax(np.abs(a - b) / allowed, initial=0.0))
