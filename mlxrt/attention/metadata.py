"""Where the rows of a step lie: built once per step and group, shared by all layers of the group.

Symbols: T rows, padding included; S sequences with rows; W blocks in the longest table of the step.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mlxrt.attention.transfer import to_device


@dataclass(frozen=True, slots=True)
class HostRows:
    """The rows of a step in one group, in host memory.

    Attributes:
        positions: [T] int32; 0 in padding rows.
        slots: [T] int64, `block id * block_size + offset`; -1 in padding rows.
        query_start: [S + 1] int32, first row of each sequence; the last entry counts the rows
            without padding.
        context_len: [S] int32, positions that the last row of each sequence sees.
        block_tables: [S, W] int32; entries at or past a sequence's context, or before its window,
            are never followed.
        block_size: positions in a block.
    """

    positions: NDArray[np.int32]
    slots: NDArray[np.int64]
    query_start: NDArray[np.int32]
    context_len: NDArray[np.int32]
    block_tables: NDArray[np.int32]
    block_size: int


@dataclass(frozen=True, slots=True)
class StepMetadata:
    """The same on the device, beside the host's copy; fields as in `HostRows`.

    Attributes:
        host: None in a compiled step, which stands for all of its shape.
    """

    host: HostRows | None
    positions: mx.array
    slots: mx.array
    query_start: mx.array
    context_len: mx.array
    block_tables: mx.array

    @classmethod
    def from_host(cls, host: HostRows) -> StepMetadata:
        """Uploads `host`. Runs on the engine's thread."""
        return cls(
            host,
            *to_device(
                (
                    host.positions,
                    host.slots,
                    host.query_start,
                    host.context_len,
                    host.block_tables,
                )
            ),
        )

    def in_group(self, host: HostRows) -> StepMetadata:
        """The same rows in another group: only slots and tables differ and are uploaded."""
        slots, block_tables = to_device((host.slots, host.block_tables))
        return replace(self, host=host, slots=slots, block_tables=block_tables)
