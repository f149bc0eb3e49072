"""Rows of sequences that had failed before the step was accepted: it does not run them.

A scheduler that sends steps ahead hears of a failure late, so it may have counted on such rows.
What they were to write counts as not computed from then on, as where the engine had run them:
whoever reads it is refused, and never gets what the block held before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence as Row

from mlxrt.core.block import Table
from mlxrt.core.bounds import Bounds
from mlxrt.core.draft import Draft
from mlxrt.core.sequence import Sequence
from mlxrt.core.step import Item


def note_tables(draft: Draft, sequence: Sequence, item: Item, bounds: Bounds) -> None:
    """Notes in the draft where the item would have left the tables of a failed sequence.

    Nothing is refused and no block counts as named: an id that is not leased is taken for a hole,
    and entries past the longest table are left out.
    """
    if item.append is None and item.replace is None and not item.leading_holes:
        return
    position, tables = sequence.meant_position, [list(table) for table in sequence.meant_tables]
    if item.replace is not None:
        position = 0
        tables = [[] for _ in tables]
    for group, ids in (item.replace or item.append or {}).items():
        if 0 <= group < bounds.group_count:
            tables[group] += _blocks(draft, group, ids, bounds.max_table_length)
            del tables[group][bounds.max_table_length :]
    for group, count in (item.leading_holes or {}).items():
        if 0 <= group < bounds.group_count:
            holes = max(0, min(count, len(tables[group])))
            tables[group][:holes] = [None] * holes
    draft.meant[sequence] = position, tables


def lose_rows(
    draft: Draft,
    sequence: Sequence,
    start: int | None,
    count: int,
    place: int,
    bounds: Bounds,
    draft_count: int = 0,
) -> None:
    """Counts what `count` rows of a failed sequence, and those of drafts behind them, were to write
    as not computed.

    Only in blocks that they could have written: named by no other table but such as take them in
    this step for rows behind.

    Args:
        start: position of the first row; None for where its owner takes the sequence to stand.
        place: the writer's index among the items, -1 for a decode id.
    """
    stands, tables = draft.meant.get(sequence, (sequence.meant_position, sequence.meant_tables))
    start = stands if start is None else start
    draft.meant[sequence] = min(start + count, bounds.max_length), tables
    first, end = max(start, 0), min(start + count + draft_count, bounds.max_length)
    if first >= end:
        return
    size = bounds.block_size
    for own, table in zip(sequence.tables, tables, strict=True):
        named = Counter(own)
        for index in range(first // size, min(-(-end // size), len(table))):
            block, base = table[index], index * size
            if block is not None and draft.is_taken_behind(block, place, named[block]):
                lowest = max(first - base, 0)
                draft.lose(block, lowest)
                written = min(end - base, size)
                draft.writes.append((sequence, block, lowest, written, base, False))


def _blocks(draft: Draft, group: int, ids: Row[int], most: int) -> Table:
    leased = draft.session.blocks[group]
    return [leased.get(block_id) for block_id in ids[:most]]
