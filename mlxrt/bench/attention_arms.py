"""The arms of `mlxrt bench attention`: what is timed, over which arrays, and the proof of the path.

Two layouts of the pool: `token_major`, `[num_blocks, block_size, num_kv_heads, head_dim]`, which
the native operations read, and `head_major`, `[num_blocks, num_kv_heads, block_size, head_dim]`.
Block ids run in reverse order over a pool with twice the blocks needed, so that no arm profits from
neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from mlxrt import kernels

LAYOUTS = ("token_major", "head_major")
ARMS = ("paged", "paged_ordered", "gather", "gather_only", "append", "contiguous")
NUM_Q_HEADS, NUM_KV_HEADS, HEAD_DIM = 16, 8, 128
SCALE = HEAD_DIM**-0.5

NATIVE_OPS = ("paged_attention", "kv_write")
_EXPECTED: Mapping[str, Mapping[str, int]] = {
    "paged": {"paged_attention": 1, "kv_write": 0},
    "paged_ordered": {"paged_attention": 1, "kv_write": 0},
    "append": {"paged_attention": 0, "kv_write": 1},
}
"""Native evaluations in one run of an arm on token_major; nothing native in all others."""


class ArmError(RuntimeError):
    """An arm did not take its path: its figure would be another's."""


@dataclass(frozen=True, slots=True)
class Place:
    """One configuration of the grid."""

    context: int
    batch: int
    block_size: int
    layout: str
    dtype: str

    @property
    def pool_bytes(self) -> int:
        """Bytes of keys and values in a pool of twice the blocks needed."""
        blocks = 2 * self.batch * -(-self.context // self.block_size) + 1
        return 2 * blocks * self.block_size * self._row_bytes

    @property
    def bytes_needed(self) -> int:
        """Bytes that measuring it takes at most: the pool, what is gathered, and copies of it."""
        return self.pool_bytes * 5 // 2

    @property
    def bytes_read(self) -> int:
        """Bytes of keys and values that one decode step must read."""
        return 2 * self.batch * self.context * self._row_bytes

    @property
    def _row_bytes(self) -> int:
        dtype: mx.Dtype = getattr(mx, self.dtype)
        return NUM_KV_HEADS * HEAD_DIM * dtype.size


class Case:
    """Arrays of one configuration, and the arms over them."""

    def __init__(self, place: Place) -> None:
        """Allocates and evaluates everything."""
        self.place = place
        batch, size, dtype = place.batch, place.block_size, getattr(mx, place.dtype)
        blocks_each = -(-place.context // size)
        needed = batch * blocks_each
        inner = (size, NUM_KV_HEADS) if place.layout == "token_major" else (NUM_KV_HEADS, size)
        shape = (2 * needed + 1, *inner, HEAD_DIM)
        self.k_pool, self.v_pool = (_filled(shape, dtype) for _ in range(2))
        self.query = mx.random.normal((batch, NUM_Q_HEADS, HEAD_DIM)).astype(dtype)
        self.row = mx.random.normal((batch, NUM_KV_HEADS, HEAD_DIM)).astype(dtype)
        ordered = np.arange(1, needed + 1, dtype=np.int32).reshape(batch, blocks_each)
        scattered = np.arange(2 * needed, 0, -2, dtype=np.int32).reshape(batch, blocks_each)
        self.ordered, self.scattered = mx.array(ordered), mx.array(scattered)
        self.query_start = mx.arange(batch + 1).astype(mx.int32)
        self.context_len = mx.full((batch,), place.context, dtype=mx.int32)
        block, self.offset = divmod(place.context - 1, size)
        self.last = mx.array(scattered[:, block])
        self.slots = mx.array(scattered[:, block].astype(np.int64) * size + self.offset)
        mx.eval(self.query, self.row, self.ordered, self.scattered, self.query_start)
        mx.eval(self.context_len, self.last, self.slots)
        self._contiguous: tuple[mx.array, mx.array] | None = None

    def arms(self) -> dict[str, Callable[[], object]]:
        """What each arm evaluates once; the paged ones only in the layout that they read."""
        arms: dict[str, Callable[[], object]] = {}
        if self.place.layout == "token_major":
            arms["paged"] = lambda: self._paged(self.scattered)
            arms["paged_ordered"] = lambda: self._paged(self.ordered)
        arms["gather"] = lambda: self._attend(*self._gathered())
        arms["gather_only"] = self._gathered
        arms["append"] = self._append
        arms["contiguous"] = self._contiguous_attention
        return arms

    def check_path(self, arm: str, runs: int, before: Mapping[str, int]) -> None:
        """Compares what ran natively since `before` with what `runs` runs of an arm must have run.

        Raises:
            ArmError: the arm took another path.
        """
        expected = _EXPECTED.get(arm, {}) if self.place.layout == "token_major" else {}
        now = kernels.counters()
        for op in NATIVE_OPS:
            ran = now[op] - before[op]
            if ran != runs * expected.get(op, 0):
                raise ArmError(
                    f"arm {arm} of {self.place}: {op} ran natively {ran} times in {runs} runs"
                )

    def _paged(self, tables: mx.array) -> mx.array:
        return kernels.paged_attention(
            self.query, self.k_pool, self.v_pool, tables, self.query_start, self.context_len,
            scale=SCALE,
        )  # fmt: skip

    def _gathered(self) -> tuple[mx.array, mx.array]:
        """Keys and values as `[batch, num_kv_heads, context, head_dim]`."""

        def one(pool: mx.array) -> mx.array:
            blocks = pool[self.scattered]
            if self.place.layout == "token_major":
                rows = blocks.reshape(self.place.batch, -1, NUM_KV_HEADS, HEAD_DIM)
                return rows[:, : self.place.context].transpose(0, 2, 1, 3)
            rows = blocks.transpose(0, 2, 1, 3, 4).flatten(2, 3)
            return rows[:, :, : self.place.context]

        return one(self.k_pool), one(self.v_pool)

    def _attend(self, keys: mx.array, values: mx.array) -> mx.array:
        return mx.fast.scaled_dot_product_attention(
            self.query[:, :, None], keys, values, scale=SCALE
        )

    def _contiguous_attention(self) -> mx.array:
        if self._contiguous is None:
            shape = (self.place.batch, NUM_KV_HEADS, self.place.context, HEAD_DIM)
            self._contiguous = _filled(shape, self.row.dtype), _filled(shape, self.row.dtype)
        return self._attend(*self._contiguous)

    def _append(self) -> list[mx.array]:
        """One row per sequence: natively in place, or by assignment to a pool nobody else holds."""
        if self.place.layout == "token_major":
            self.k_pool, self.v_pool = kernels.kv_write(
                self.k_pool, self.v_pool, self.row, self.row, self.slots
            )
        else:
            for pool in (self.k_pool, self.v_pool):
                pool[self.last, :, self.offset] = self.row
        return [self.k_pool, self.v_pool]


def _filled(shape: tuple[int, ...], dtype: mx.Dtype) -> mx.array:
    """Random values in [0, 1), evaluated; of the type itself, as a pool is too big for a copy."""
    array = mx.random.uniform(shape=shape, dtype=dtype)
    mx.eval(array)
    return array
