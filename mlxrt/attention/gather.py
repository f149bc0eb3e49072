"""The gather path: plain MLX, the reference of the native path's tests and the fallback.

Its cost: each layer gathers what each sequence sees of its context before attention. Sequences with
one row share attention calls, those with more have one each. Its functional write is in place only
while nothing else holds the pool's buffer, so the engine launches a step on this path only after
the step before has ended.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mlxrt.attention.heads import HeadRules
from mlxrt.attention.metadata import HostRows, StepMetadata
from mlxrt.attention.path import AttendCounts

GATHERED_POSITIONS_MAX = 1 << 15
"""Positions that one shared attention call gathers at most; a longer sequence has its own."""


@dataclass(frozen=True, slots=True)
class Segment:
    """The rows `first` to `last - 1`: those of g sequences, one after the other, each as many.

    Attributes:
        blocks: [g, n] int32, those that hold positions `begin` to `context - 1` of each sequence.
        begin: the first position that any of the rows sees.
    """

    first: int
    last: int
    blocks: mx.array
    begin: int
    context: int


@dataclass(frozen=True, slots=True)
class _Singles:
    """Sequences of one row each that share a call; L is the positions of the most blocks that one
    of them sees.

    Attributes:
        rows: [n] int32, their rows.
        blocks: [n, W] int32, for each those that it sees; its last one again where it has fewer.
        visible: [n, L] bool.
    """

    rows: mx.array
    blocks: mx.array
    visible: mx.array


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A step as this path needs it.

    Attributes:
        blocks, offsets: the slot of each real row.
        order: [T] int32, where each row stands in the outputs of singles, then segments; None
            where they are in order already.
    """

    blocks: mx.array
    offsets: mx.array
    row_count: int
    padding_count: int
    singles: tuple[_Singles, ...]
    segments: tuple[Segment, ...]
    order: mx.array | None


class GatherPath:
    """Gathers the sequences' blocks and calls mlx's own attention on what is below their contexts.

    Positions at or past the context are cut off or zeroed before any arithmetic, so whatever a
    former owner left there (NaN included) has no effect.
    """

    name = "gather"
    overlaps = False

    def __init__(self) -> None:
        self.counts = AttendCounts()

    def prepare(self, metadata: StepMetadata, window: int = 0) -> _Prepared:
        """Splits the step into calls of attention."""
        host = metadata.host
        assert host is not None
        row_count = int(host.query_start[-1])
        slots = host.slots[:row_count]
        begins = _begins(host, window)
        groups, alone = _part(host, begins)
        segments = []
        rows: list[int] = []
        for group in groups:
            rows += host.query_start[group].tolist()
        for index in alone:
            first, last = host.query_start[index : index + 2].tolist()
            rows += range(first, last)
            segments.append(segment_of(host, index, window))
        in_order = rows == list(range(row_count))
        return _Prepared(
            blocks=mx.array((slots // host.block_size).astype(np.int32)),
            offsets=mx.array((slots % host.block_size).astype(np.int32)),
            row_count=row_count,
            padding_count=len(host.slots) - row_count,
            singles=tuple(_singles(host, begins, group) for group in groups),
            segments=tuple(segments),
            order=None if in_order else mx.array(np.argsort(rows).astype(np.int32)),
        )

    def prepare_decode(self, metadata: StepMetadata, positions: int) -> Any:
        """Raises RuntimeError: what is gathered is decided on the host, step by step."""
        raise RuntimeError("steps of the gather path can't be compiled")

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

    def norm_rope_write(
        self,
        qkv: mx.array,
        rules: HeadRules,
        positions: mx.array,
        pool: tuple[mx.array, mx.array],
        prepared: Any,
    ) -> tuple[mx.array, mx.array, mx.array]:
        """Raises RuntimeError: this path runs mlx-lm's own operations."""
        raise RuntimeError("the gather path has no fused operations")

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
            _attend_singles(queries, pool, group, scale, sinks) for group in prepared.singles
        ]
        outputs += [
            attend_segment(queries, read_segment(pool, segment), segment, scale, window, sinks)
            for segment in prepared.segments
        ]
        output = outputs[0] if len(outputs) == 1 else mx.concatenate(outputs, axis=0)
        if prepared.order is not None:
            output = output[prepared.order]
        if prepared.padding_count:
            output = mx.pad(output, [(0, prepared.padding_count), (0, 0), (0, 0)])
        return output

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


def _begins(host: HostRows, window: int) -> NDArray[np.int32]:
    """The first position that each sequence's first row sees: [S]."""
    if not window:
        return np.zeros_like(host.context_len)
    first_rows = host.context_len - np.diff(host.query_start)
    return np.maximum(first_rows + 1 - window, 0).astype(np.int32)


def segment_of(host: HostRows, index: int, window: int, count: int = 1) -> Segment:
    """Sequences `index` to `index + count - 1` as a segment; they are alike in rows and context."""
    first, last = int(host.query_start[index]), int(host.query_start[index + count])
    begin, context = int(_begins(host, window)[index]), int(host.context_len[index])
    held = slice(begin // host.block_size, -(-context // host.block_size))
    blocks = mx.array(host.block_tables[index : index + count, held])
    return Segment(first, last, blocks, begin, context)


def segments_of(host: HostRows, chosen: NDArray[np.bool_], window: int) -> list[Segment]:
    """The `chosen` sequences [S] as segments: neighbours alike in rows and context share one, while
    what it gathers is not too much.
    """
    counts = np.diff(host.query_start)
    segments = []
    start = 0
    while start < len(chosen):
        if not chosen[start]:
            start += 1
            continue
        most = max(1, GATHERED_POSITIONS_MAX // int(host.context_len[start]))
        end = start + 1
        while (
            end < min(len(chosen), start + most)
            and chosen[end]
            and counts[end] == counts[start]
            and host.context_len[end] == host.context_len[start]
        ):
            end += 1
        segments.append(segment_of(host, start, window, end - start))
        start = end
    return segments


def _part(host: HostRows, begins: NDArray[np.int32]) -> tuple[list[list[int]], list[int]]:
    """Parts the sequences into groups that share a call and those that have one each.

    A group's blocks differ in number by at most a factor of two, so that padding at most doubles
    what is gathered.
    """
    counts = np.diff(host.query_start)
    block_counts = -(-host.context_len // host.block_size) - begins // host.block_size
    shared: dict[int, list[int]] = {}
    alone = []
    for index, (count, blocks) in enumerate(
        zip(counts.tolist(), block_counts.tolist(), strict=True)
    ):
        if count == 1:
            shared.setdefault(blocks.bit_length(), []).append(index)
        else:
            alone.append(index)
    groups = []
    for bits, members in sorted(shared.items()):
        size = max(1, GATHERED_POSITIONS_MAX // (host.block_size << bits))
        for first in range(0, len(members), size):
            group = members[first : first + size]
            if len(group) == 1:
                alone += group
            else:
                groups.append(group)
    return groups, sorted(alone)


def _singles(host: HostRows, begins: NDArray[np.int32], group: list[int]) -> _Singles:
    size = host.block_size
    contexts, begin = host.context_len[group][:, None], begins[group][:, None]
    first, last = begin // size, -(-contexts // size) - 1
    width = int((last - first).max()) + 1
    entries = np.minimum(first + np.arange(width, dtype=np.int32), last)
    positions = first * size + np.arange(width * size, dtype=np.int32)
    return _Singles(
        rows=mx.array(host.query_start[group]),
        blocks=mx.array(host.block_tables[np.array(group)[:, None], entries]),
        visible=mx.array((positions >= begin) & (positions < contexts)),
    )


def _attend_singles(
    queries: mx.array,
    pool: tuple[mx.array, mx.array],
    group: _Singles,
    scale: float,
    sinks: mx.array | None,
) -> mx.array:
    """Attention of the group's rows: `[n, Hq, D]`."""
    # A masked position is multiplied by 0 all the same, and 0 * NaN is NaN: so it is zeroed.
    kept = group.visible[:, :, None, None]
    keys, values = (
        mx.where(kept, array[group.blocks].flatten(1, 2), 0).transpose(0, 2, 1, 3) for array in pool
    )
    output = mx.fast.scaled_dot_product_attention(
        queries[group.rows][:, :, None],
        keys,
        values,
        scale=scale,
        mask=group.visible[:, None, None],
        sinks=sinks,
    )
    return output.squeeze(2)


def read_segment(pool: tuple[mx.array, mx.array], segment: Segment) -> list[mx.array]:
    """Keys and values of a segment's blocks, copied: each `[g, blocks of one, block_size, ...]`."""
    # In one dimension of blocks, each one piece: MLX's kernel takes two thirds of the time then.
    shape = (*segment.blocks.shape, *pool[0].shape[1:3])
    ids = segment.blocks.flatten()
    return [
        mx.take(array.flatten(1), ids, axis=0).reshape(*shape, array.shape[3]) for array in pool
    ]


def attend_segment(
    queries: mx.array,
    blocks: list[mx.array],
    segment: Segment,
    scale: float,
    window: int,
    sinks: mx.array | None,
) -> mx.array:
    """Attention of a segment's rows: `[n, Hq, D]`; `blocks` as `read_segment` returns them."""
    keys, values = (_positions(array, segment) for array in blocks)
    rows = mx.unflatten(queries[segment.first : segment.last], 0, (len(segment.blocks), -1))
    output = mx.fast.scaled_dot_product_attention(
        rows.transpose(0, 2, 1, 3),
        keys,
        values,
        scale=scale,
        mask=_mask(segment, window),
        sinks=sinks,
    )
    return output.transpose(0, 2, 1, 3).flatten(0, 1)


def _positions(blocks: mx.array, segment: Segment) -> mx.array:
    """Positions `begin` to `context - 1` of the sequences as `[g, Hkv, n, D]`."""
    skipped = segment.begin % blocks.shape[2]
    rows = blocks.flatten(1, 2)[:, skipped : skipped + segment.context - segment.begin]
    return rows.transpose(0, 2, 1, 3)


def _mask(segment: Segment, window: int) -> mx.array | str | None:
    """What the rows may not see of what was gathered; None where they see all of it."""
    count = (segment.last - segment.first) // len(segment.blocks)
    if count == 1:
        return None
    if window and segment.context - segment.begin > window:
        rows = mx.arange(segment.context - count, segment.context)[:, None]
        columns = mx.arange(segment.begin, segment.context)[None]
        return (rows >= columns) & (rows < columns + window)
    return "causal"
