"""The two ways to write and read the pool, and the count of which one ran."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import mlx.core as mx

from mlxrt.attention.heads import HeadRules
from mlxrt.attention.metadata import StepMetadata


@dataclass(slots=True)
class AttendCounts:
    """Attention calls of layers so far, by the path that served them; of them, fused ones."""

    native: int = 0
    gather: int = 0
    fused: int = 0


class AttentionPath(Protocol):
    """How KV rows reach the pool and how queries read it. All methods only build graph; the
    engine's thread calls them.

    Symbols: T rows of the step, Hq query heads, Hkv KV heads, D head width; a pool array is
    `[num_blocks, block_size, Hkv, D]`.
    """

    name: str
    overlaps: bool
    """Whether a step may be launched while the one before runs, without a copy of the pool."""
    counts: AttendCounts

    def prepare(self, metadata: StepMetadata, window: int = 0) -> Any:
        """What the path derives once per step and group; `window` is the group's."""

    def prepare_decode(self, metadata: StepMetadata, positions: int) -> Any:
        """The same for any step of one row a sequence and of the arrays' shapes: what a compiled
        step is traced with. `positions` is about how many the sequences see together.

        Raises:
            RuntimeError: steps of this path can't be compiled.
        """

    def write(
        self, keys: mx.array, values: mx.array, new: tuple[mx.array, mx.array], prepared: Any
    ) -> tuple[mx.array, mx.array]:
        """Writes `new`, K and V rows `[T, Hkv, D]`, to the step's slots; returns the pool's new
        handles.
        """

    def norm_rope_write(
        self,
        qkv: mx.array,
        rules: HeadRules,
        positions: mx.array,
        pool: tuple[mx.array, mx.array],
        prepared: Any,
    ) -> tuple[mx.array, mx.array, mx.array]:
        """Norms and turns the heads in `qkv`, [T, (Hq + 2 Hkv) * D], by `positions` [T], and writes
        K and V to the step's slots; returns the queries `[T, Hq, D]` and the pool's new handles.

        Raises:
            RuntimeError: the path has no such operation.
        """

    def attend(
        self,
        queries: mx.array,
        pool: tuple[mx.array, mx.array],
        prepared: Any,
        *,
        scale: float,
        window: int,
        sinks: mx.array | None,
    ) -> mx.array:
        """Attention of `queries` `[T, Hq, D]` over each row's own context; returns `[T, Hq, D]`.

        `window` is the one that `prepared` was made for. What lies before it is neither read nor
        multiplied: a table may have holes there.
        """

    def copy_blocks(
        self, pools: Sequence[mx.array], sources: mx.array, destinations: mx.array
    ) -> list[mx.array]:
        """Copies blocks in each array, all sources read before any is written; ids int32. Returns
        the new handles.
        """
