"""From the rows of a step to the rules by which they are sampled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from mlxrt.core.sampling import GREEDY
from mlxrt.engine.batch import Batch
from mlxrt.engine.mirrors import SequenceMirrors, decode_pending
from mlxrt.engine.sampling import SamplingBatch, SamplingRow


def step_rules(
    batch: Batch, mirrors: SequenceMirrors, masks: Mapping[int, bytes]
) -> SamplingBatch | None:
    """The rules of the selected rows, each as of its own position; None where none is selected.

    Args:
        masks: by handle, `Mask.allowed`.
    """
    if not len(batch.selected_sequences):
        return None
    if not masks:
        lines = batch.lines[batch.selected_sequences]
        sampled = batch.selection.sampled
        gathered = mirrors.draws.gather(lines, batch.selected_positions, sampled)
        if gathered is not None:
            return gathered
    return SamplingBatch.build(_row_by_row(batch, mirrors, masks), mirrors.vocabulary_size)


def _row_by_row(
    batch: Batch, mirrors: SequenceMirrors, masks: Mapping[int, bytes]
) -> list[SamplingRow | None]:
    """The selected rows one by one; None for those that are plain greedy or don't sample."""
    selection = batch.selection
    allowed = {handle: _rows_of(data, mirrors.vocabulary_size) for handle, data in masks.items()}
    rows: list[SamplingRow | None] = [None] * len(selection.sequences)
    for index in selection.sampled:
        sequence, back = selection.sequences[index], selection.backs[index]
        row = mirrors.sampling[batch.lines[sequence]]
        mask = allowed.get(batch.handles[sequence]) if allowed else None
        if row is None and mask is None:
            continue
        if back or mask is not None:
            # Several rows of the sequence differ, and masks are of this step alone.
            row = SamplingRow(GREEDY) if row is None else replace(row)
        assert row is not None
        if mask is not None:
            row.allowed = mask[len(mask) - 1 - back]
        rows[index] = _at_position(row, batch, mirrors, index)
    return rows


def _rows_of(data: bytes, vocabulary_size: int) -> NDArray[np.uint32]:
    """[rows, ceil(V / 32)]."""
    words: NDArray[np.uint32] = np.frombuffer(data, "<u4").astype(np.uint32, copy=False)
    return words.reshape(-1, -(-vocabulary_size // 32))


def _at_position(
    row: SamplingRow, batch: Batch, mirrors: SequenceMirrors, selected: int
) -> SamplingRow:
    """Brings a sequence's sampling row up to a selected row's position."""
    position = int(batch.selected_positions[selected])
    row.position = position
    if row.sampling.penalised:
        line = batch.lines[batch.selection.sequences[selected]]
        first = int(mirrors.prompt_length[line])
        generated = mirrors.tokens[line, first:position]
        coded = generated < 0
        row.generated = generated[~coded]
        row.pending = decode_pending(generated[coded], 1 - batch.parity).tolist()
    return row
