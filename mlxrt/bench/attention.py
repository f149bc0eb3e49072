"""`mlxrt bench attention`: decode attention by the paged op, beside gather + SDPA and contiguous
SDPA.

Each figure is the least of several timed evaluations, after one that is not counted. Block ids run
in reverse order over a pool with twice the blocks needed, so that no arm profits from neighbours;
`fragmentation` is the paged time over the paged time with ascending ids. A cell whose paged arm did
not run the native op is an error, not a figure.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass

import mlx.core as mx
import numpy as np

from mlxrt import kernels

LAYOUT = "num_blocks,block_size,num_kv_heads,head_dim"
NUM_Q_HEADS, NUM_KV_HEADS, HEAD_DIM = 16, 8, 128
SCALE = HEAD_DIM**-0.5


@dataclass(frozen=True, slots=True)
class Cell:
    """One measured configuration; times in microseconds, bandwidth over the keys and values read
    once."""

    context: int
    batch: int
    block_size: int
    layout: str
    dtype: str
    paged_us: float
    gather_us: float
    gather_only_us: float
    append_us: float
    contiguous_us: float
    fragmentation: float
    paged_gb_per_s: float
    path: str


class _Case:
    """Arrays of one configuration."""

    def __init__(self, context: int, batch: int, block_size: int, dtype: mx.Dtype) -> None:
        blocks_each = -(-context // block_size)
        num_blocks = 2 * batch * blocks_each + 1
        shape = (num_blocks, block_size, NUM_KV_HEADS, HEAD_DIM)
        self.k_pool = mx.random.normal(shape).astype(dtype)
        self.v_pool = mx.random.normal(shape).astype(dtype)
        mx.eval(self.k_pool, self.v_pool)
        self.query = mx.random.normal((batch, NUM_Q_HEADS, HEAD_DIM)).astype(dtype)
        self.row = mx.random.normal((batch, NUM_KV_HEADS, HEAD_DIM)).astype(dtype)
        needed = batch * blocks_each
        ascending = np.arange(1, needed + 1, dtype=np.int32).reshape(batch, blocks_each)
        scattered = np.arange(2 * needed, 0, -2, dtype=np.int32).reshape(batch, blocks_each)
        self.ascending, self.scattered = mx.array(ascending), mx.array(scattered)
        self.query_start = mx.arange(batch + 1, dtype=mx.int32)
        self.context_len = mx.full((batch,), context, dtype=mx.int32)
        last = (context - 1) // block_size, (context - 1) % block_size
        self.slots = mx.array(scattered[:, last[0]].astype(np.int64) * block_size + last[1])
        self.context, self.batch = context, batch
        mx.eval(self.query, self.row, self.ascending, self.scattered, self.context_len)
        mx.eval(self.query_start, self.slots)

    def paged(self, tables: mx.array) -> mx.array:
        return kernels.paged_attention(
            self.query, self.k_pool, self.v_pool, tables, self.query_start, self.context_len,
            scale=SCALE,
        )  # fmt: skip

    def gathered(self) -> tuple[mx.array, mx.array]:
        def one(pool: mx.array) -> mx.array:
            rows = pool[self.scattered].reshape(self.batch, -1, NUM_KV_HEADS, HEAD_DIM)
            return rows[:, : self.context]

        return one(self.k_pool), one(self.v_pool)

    def gather_attention(self) -> mx.array:
        keys, values = (a.transpose(0, 2, 1, 3) for a in self.gathered())
        return mx.fast.scaled_dot_product_attention(
            self.query[:, :, None], keys, values, scale=SCALE
        )

    def contiguous(self) -> tuple[mx.array, mx.array]:
        shape = (self.batch, NUM_KV_HEADS, self.context, HEAD_DIM)
        keys = mx.random.normal(shape).astype(self.query.dtype)
        values = mx.random.normal(shape).astype(self.query.dtype)
        mx.eval(keys, values)
        return keys, values

    def append(self) -> list[mx.array]:
        self.k_pool, self.v_pool = kernels.kv_write(
            self.k_pool, self.v_pool, self.row, self.row, self.slots
        )
        return [self.k_pool, self.v_pool]


def _least_us(run: Callable[[], object], budget_s: float, most: int = 50) -> float:
    """Least duration of `run` evaluated, over at least 2 and at most `most` runs within about
    `budget_s`."""
    mx.eval(run())
    best, spent, count = float("inf"), 0.0, 0
    while count < 2 or (count < most and spent < budget_s):
        start = time.perf_counter()
        mx.eval(run())
        took = time.perf_counter() - start
        best, spent, count = min(best, took), spent + took, count + 1
    return best * 1e6


def measure_cell(context: int, batch: int, block_size: int, dtype: str, budget_s: float) -> Cell:
    """Measures one configuration; about six times `budget_s`, more where a single evaluation takes
    longer.

    Raises:
        RuntimeError: the paged arm did not run the native op.
    """
    case = _Case(context, batch, block_size, getattr(mx, dtype))
    before = kernels.counters()["paged_attention"]
    paged = _least_us(lambda: case.paged(case.scattered), budget_s)
    ordered = _least_us(lambda: case.paged(case.ascending), budget_s)
    if kernels.counters()["paged_attention"] <= before:
        raise RuntimeError("the paged arm did not run the native op")
    append = _least_us(case.append, budget_s)
    gather_only = _least_us(case.gathered, budget_s)
    gather = _least_us(case.gather_attention, budget_s)
    keys, values = case.contiguous()
    contiguous = _least_us(
        lambda: mx.fast.scaled_dot_product_attention(
            case.query[:, :, None], keys, values, scale=SCALE
        ),
        budget_s,
    )
    bytes_read = 2 * batch * context * NUM_KV_HEADS * HEAD_DIM * case.k_pool.itemsize
    return Cell(
        context, batch, block_size, LAYOUT, dtype, round(paged, 1), round(gather, 1),
        round(gather_only, 1), round(append, 1), round(contiguous, 1),
        round(paged / ordered, 3), round(bytes_read / paged / 1e3, 2), "native",
    )  # fmt: skip


def bench_attention(
    contexts: Iterable[int],
    batches: Iterable[int],
    block_sizes: Iterable[int],
    dtypes: Iterable[str],
    budget_s: float,
    on_cell: Callable[[Cell], None],
) -> dict[str, object]:
    """Measures the grid; returns the report that `--json` writes. Any thread, alone on the
    machine."""
    mx.set_default_device(mx.cpu)
    bandwidth = kernels.read_bandwidth()
    cells = []
    for dtype in dtypes:
        for block_size in block_sizes:
            for context in contexts:
                for batch in batches:
                    cell = measure_cell(context, batch, block_size, dtype, budget_s)
                    mx.clear_cache()
                    on_cell(cell)
                    cells.append(asdict(cell))
    bandwidth = max(bandwidth, kernels.read_bandwidth())
    return {
        "device": f"cpu ({kernels.simd_level()}, {kernels.num_threads()} threads)",
        "read_gb_per_s": round(bandwidth, 2),
        "cells": cells,
    }
