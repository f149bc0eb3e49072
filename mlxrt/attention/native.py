"""The native path: aliasing writes and one varlen paged attention, by `mlxrt.kernels`."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from mlxrt import kernels
from mlxrt.attention.metadata import StepMetadata
from mlxrt.attention.path import AttendCounts


class NativePath:
    """Writes in place and reads the pool through block tables; no cost grows with the pool."""

    name = "native"
    overlaps = True

    def __init__(self) -> None:
        self.counts = AttendCounts()

    def prepare(self, metadata: StepMetadata, window: int = 0) -> StepMetadata:
        """The kernels take the metadata as they are."""
        return metadata

    def write(
        self,
        keys: mx.array,
        values: mx.array,
        new: tuple[mx.array, mx.array],
        prepared: StepMetadata,
    ) -> tuple[mx.array, mx.array]:
        """As `AttentionPath.write`; the handles returned alias the pool."""
        written = kernels.kv_write(keys, values, new[0], new[1], prepared.slots)
        return written[0], written[1]

    def attend(
        self,
        queries: mx.array,
        pool: tuple[mx.array, mx.array],
        prepared: StepMetadata,
        *,
        scale: float,
        window: int,
        sinks: mx.array | None,
    ) -> mx.array:
        """As `AttentionPath.attend`."""
        self.counts.native += 1
        return kernels.paged_attention(
            queries,
            pool[0],
            pool[1],
            prepared.block_tables,
            prepared.query_start,
            prepared.context_len,
            scale=scale,
            window=window,
            sinks=sinks,
        )

    def copy_blocks(
        self, pools: Sequence[mx.array], sources: mx.array, destinations: mx.array
    ) -> list[mx.array]:
        """As `AttentionPath.copy_blocks`; in place."""
        return list(kernels.copy_blocks(list(pools), sources, destinations))
