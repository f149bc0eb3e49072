"""The native path: aliasing writes and one varlen paged attention, by `mlxrt.kernels`.

On a GPU the rows of a long chunk are better served by a gather and MLX's own attention, beside the
kernels in the same call; both are counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from mlxrt import kernels
from mlxrt.attention.floors import gathers_chunk
from mlxrt.attention.gather import Segment, attend_segment, read_segment, segments_of
from mlxrt.attention.heads import HeadRules
from mlxrt.attention.metadata import StepMetadata
from mlxrt.attention.path import AttendCounts


@dataclass(slots=True)
class _Prepared:
    """A step as this path needs it.

    Attributes:
        context_len: [S] int32, what the kernels are told: 0 where a segment has the rows.
        most_rows, positions: of the sequences that the kernels serve, see `kernels`.
        segments: the sequences whose blocks are gathered.
    """

    metadata: StepMetadata
    context_len: mx.array
    most_rows: int
    positions: int
    segments: tuple[Segment, ...]


class NativePath:
    """Writes in place and reads the pool through block tables; no cost grows with the pool."""

    name = "native"
    overlaps = True

    def __init__(self) -> None:
        self.counts = AttendCounts()
        self._on_gpu = mx.default_device() == mx.gpu
        # CUDA orders graphs, and within one a pool's write comes before its reads; Metal orders
        # command buffers only by what they are told of.
        self._holds_pools = self._on_gpu and not mx.cuda.is_available()

    def prepare(self, metadata: StepMetadata, window: int = 0) -> _Prepared:
        """Finds out which sequences go where."""
        host = metadata.host
        assert host is not None
        counts = np.diff(host.query_start)
        seen = np.minimum(host.context_len, window + counts) if window else host.context_len
        is_gathered = np.zeros(len(counts), bool)
        if self._on_gpu:
            is_gathered = gathers_chunk(counts, seen)
        context_len = metadata.context_len
        if is_gathered.any():
            context_len = mx.array(np.where(is_gathered, 0, host.context_len).astype(np.int32))
        kept = ~is_gathered
        return _Prepared(
            metadata=metadata,
            context_len=context_len,
            most_rows=int(counts[kept].max(initial=0)),
            positions=int(seen[kept].sum()),
            segments=tuple(segments_of(host, is_gathered, window)),
        )

    def prepare_decode(self, metadata: StepMetadata, positions: int) -> _Prepared:
        """A step of one row a sequence, of which the host knows the shape alone.

        Args:
            positions: about how many the sequences see together; speed alone depends on it.
        """
        return _Prepared(metadata, metadata.context_len, 1, positions, ())

    def write(
        self,
        keys: mx.array,
        values: mx.array,
        new: tuple[mx.array, mx.array],
        prepared: _Prepared,
    ) -> tuple[mx.array, mx.array]:
        """As `AttentionPath.write`; the handles returned alias the pool."""
        written = kernels.kv_write(keys, values, new[0], new[1], prepared.metadata.slots)
        return written[0], written[1]

    def norm_rope_write(
        self,
        qkv: mx.array,
        rules: HeadRules,
        positions: mx.array,
        pool: tuple[mx.array, mx.array],
        prepared: _Prepared,
    ) -> tuple[mx.array, mx.array, mx.array]:
        """As `AttentionPath.norm_rope_write`; the handles returned alias the pool."""
        self.counts.fused += 1
        queries, keys, values = kernels.norm_rope_write(
            qkv,
            rules.q_norm,
            rules.k_norm,
            rules.eps,
            positions,
            rules.inverse_frequencies,
            rules.rope_scale,
            rules.traditional,
            pool[0],
            pool[1],
            prepared.metadata.slots,
            rules.num_q_heads,
            rules.num_kv_heads,
        )
        return queries, keys, values

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
        if not prepared.segments:
            return self._attend_native(queries, pool, prepared, scale, window, sinks)
        self.counts.gather += 1
        own = None
        if prepared.most_rows:
            own = self._attend_native(queries, pool, prepared, scale, window, sinks)
        pieces = []
        row = 0
        for segment in prepared.segments:
            if own is not None and segment.first > row:
                pieces.append(own[row : segment.first])
            blocks = read_segment(pool, segment)
            if self._holds_pools:
                blocks = kernels.hold_pools(blocks, list(pool))
            pieces.append(attend_segment(queries, blocks, segment, scale, window, sinks))
            row = segment.last
        if row < queries.shape[0]:
            # Rows of sequences that the kernels serve, or padding.
            rest = queries.shape[0] - row
            shape = (rest, queries.shape[1], pool[1].shape[3])
            pieces.append(mx.zeros(shape, queries.dtype) if own is None else own[row:])
        return pieces[0] if len(pieces) == 1 else mx.concatenate(pieces, axis=0)

    def _attend_native(
        self,
        queries: mx.array,
        pool: tuple[mx.array, mx.array],
        prepared: _Prepared,
        scale: float,
        window: int,
        sinks: mx.array | None,
    ) -> mx.array:
        self.counts.native += 1
        return kernels.paged_attention(
            queries,
            pool[0],
            pool[1],
            prepared.metadata.block_tables,
            prepared.metadata.query_start,
            prepared.context_len,
            scale=scale,
            window=window,
            sinks=sinks,
            most_rows=prepared.most_rows,
            positions=prepared.positions,
        )

    def copy_blocks(
        self, pools: Sequence[mx.array], sources: mx.array, destinations: mx.array
    ) -> list[mx.array]:
        """As `AttentionPath.copy_blocks`; in place."""
        return list(kernels.copy_blocks(list(pools), sources, destinations))
