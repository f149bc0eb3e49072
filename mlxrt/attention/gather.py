"""The gather path: plain MLX, the reference that the native path is tested against and the
fallback.

Its cost: each layer gathers the whole context of each sequence before attention, and one attention
call runs per sequence. Its functional write is in place only while nothing else holds the pool's
buffer, so the engine launches a step on this path only after the step before has ended.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from mlxrt.attention.metadata import StepMetadata
from mlxrt.attention.path import AttendCounts


@dataclass(frozen=True, slots=True)
class _Segment:
    """The rows `first` to `last - 1` of one sequence, its blocks `[n]` int32 and its context."""

    first: int
    last: int
    blocks: mx.array
    context: int


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A step as this path needs it: the slot of each real row as `(block, offset)`, and the
    sequences one by one.
    """

    blocks: mx.array
    offsets: mx.array
    row_count: int
    padding_count: int
    segments: tuple[_Segment, ...]


class GatherPath:
    """Gathers a sequence's blocks, cuts them at its context and calls mlx's own attention.

    Positions at or past the context are cut off before any arithmetic, so whatever a former owner
    left there (NaN included) has no effect.
    """

    name = "gather"
    overlaps = False

    def __init__(self) -> None:
        self.counts = AttendCounts()

    def prepare(self, metadata: StepMetadata) -> _Prepared:
        """Splits the step into sequences."""
        host = metadata.host
        starts = host.query_start.tolist()
        contexts = host.context_len.tolist()
        row_count = starts[-1]
        slots = host.slots[:row_count]
        segments = []
        for index, context in enumerate(contexts):
            block_count = -(-context // host.block_size)
            blocks = mx.array(host.block_tables[index, :block_count])
            segments.append(_Segment(starts[index], starts[index + 1], blocks, context))
        return _Prepared(
            blocks=mx.array((slots // host.block_size).astype(np.int32)),
            offsets=mx.array((slots % host.block_size).astype(np.int32)),
            row_count=row_count,
            padding_count=len(host.slots) - row_count,
            segments=tuple(segments),
        )

    def write(
        self,
        keys: mx.array,
        values: mx.array,
        new: tuple[mx.array, mx.array],
        prepared: _Prepared,
    ) -> tuple[mx.array, mx.array]:
        """As `AttentionPath.write`; padding rows are left out."""
        count = prepared.row_count
        if not count:
            return keys, values
        keys, values = _new_handle(keys), _new_handle(values)
        keys[prepared.blocks, prepared.offsets] = new[0][:count]
        values[prepared.blocks, prepared.offsets] = new[1][:count]
        return keys, values

    def attend(
        self,
        queries: mx.array,
        pool: tuple[mx.array, mx.array],
        prepared: _Prepared,
        *,
        scale: float,
        window: int,
        sinks: mx.array | None,
    ) -> mx.array:
        """As `AttentionPath.attend`."""
        self.counts.gather += 1
        outputs = [
            _attend_sequence(queries, pool, segment, scale, window, sinks)
            for segment in prepared.segments
        ]
        if prepared.padding_count:
            shape = (prepared.padding_count, queries.shape[1], pool[1].shape[3])
            outputs.append(mx.zeros(shape, queries.dtype))
        return outputs[0] if len(outputs) == 1 else mx.concatenate(outputs, axis=0)

    def copy_blocks(
        self, pools: Sequence[mx.array], sources: mx.array, destinations: mx.array
    ) -> list[mx.array]:
        """As `AttentionPath.copy_blocks`; the sources are gathered first."""
        copied = []
        for pool in map(_new_handle, pools):
            pool[destinations] = pool[sources]
            copied.append(pool)
        return copied


def _new_handle(pool: mx.array) -> mx.array:
    """The same array under a Python object of its own: assigning to it leaves the caller's object
    as it was.
    """
    return pool.reshape(pool.shape)


def _attend_sequence(
    queries: mx.array,
    pool: tuple[mx.array, mx.array],
    segment: _Segment,
    scale: float,
    window: int,
    sinks: mx.array | None,
) -> mx.array:
    """Attention of one sequence's rows: `[n, Hq, D]`."""
    keys, values = (_gather(array, segment) for array in pool)
    rows = queries[segment.first : segment.last].transpose(1, 0, 2)[None]
    output = mx.fast.scaled_dot_product_attention(
        rows, keys, values, scale=scale, mask=_mask(segment, window), sinks=sinks
    )
    return output[0].transpose(1, 0, 2)


def _gather(pool: mx.array, segment: _Segment) -> mx.array:
    """The sequence's context as `[1, Hkv, context, D]`."""
    rows = pool[segment.blocks].reshape(-1, *pool.shape[2:])[: segment.context]
    return rows.transpose(1, 0, 2)[None]


def _mask(segment: _Segment, window: int) -> mx.array | str | None:
    """What the rows may not see of the context; None where they see all of it."""
    count = segment.last - segment.first
    if window and segment.context > window:
        rows = mx.arange(segment.context - count, segment.context)[:, None]
        columns = mx.arange(segment.context)[None]
        return (rows >= columns) & (rows < columns + window)
    return "causal" if count > 1 else None
