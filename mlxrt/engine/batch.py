"""From a plan to the arrays of its step, in host memory.

Symbols: S sequences with rows, T rows, Tb rows after padding, K selected rows (they sample, or
answer logits).
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field

import numpy as np

from mlxrt.attention.metadata import HostRows
from mlxrt.core.step import Entry, StepPlan, TokenSource
from mlxrt.engine.mirrors import (
    IndexArray,
    IntArray,
    Overwrite,
    SequenceMirrors,
    encode_pending,
)


@dataclass(slots=True)
class Batch:
    """The rows of one step.

    Attributes:
        handles: of the sequences, decode sequences first.
        lines: [S] their lines in the mirrors.
        known: [S] number of tokens before the next one, `start + count`.
        tokens: [Tb] int32; negative codes where the token is still on the device.
        groups: where the rows lie, by group.
        row_count: T.
        selected_sequences: [K] index into S.
        selected_rows: [K] index into T; None where all Tb rows are selected.
        selection_of_entry: by entry of the plan, its index in K or -1.
        logits_selections: the indices in K that answer logits.
        parity: tells this step's codes from those of the step before.
        codes: what the sampled tokens stand as until they are read; one per `sampled_selections`.
        sampled_selections: [k] the indices in K that sample.
        pending: the mirrors' places of the sampled tokens.
        overwrites: what explicit tokens replaced.
    """

    handles: list[int]
    lines: IndexArray
    known: IndexArray
    tokens: IntArray
    groups: list[HostRows]
    row_count: int
    selected_sequences: IndexArray
    selected_rows: IntArray | None
    selection_of_entry: list[int]
    logits_selections: list[int]
    parity: int
    codes: IntArray
    sampled_selections: IndexArray
    pending: Overwrite
    overwrites: list[Overwrite] = field(default_factory=list)

    @property
    def bucket_row_count(self) -> int:
        """Tb."""
        return len(self.tokens)


def padded(row_count: int, buckets: tuple[int, ...]) -> int:
    """The smallest bucket that holds the rows; their own number where none does."""
    index = bisect_left(buckets, row_count)
    return buckets[index] if index < len(buckets) else row_count


def apply_changes(plan: StepPlan, mirrors: SequenceMirrors) -> None:
    """Makes retirements, registrations and table updates true; they stay true if the step fails."""
    for handle in plan.retired:
        mirrors.retire(handle)
    for registration in plan.registrations:
        mirrors.register(registration)
    for update in plan.table_updates:
        mirrors.update_table(update)


def build_batch(
    plan: StepPlan,
    mirrors: SequenceMirrors,
    block_size: int,
    buckets: tuple[int, ...],
    parity: int,
) -> Batch | None:
    """Lays out the rows of `plan`, whose changes are applied already; None where it has no rows.

    Writes explicit tokens and the codes of the tokens to be sampled into the mirrors; `undo_batch`
    takes both back.
    """
    entries = [entry for entry in plan.entries if entry.count]
    decode_count = len(plan.decode_handles)
    handles = [*plan.decode_handles, *(entry.handle for entry in entries)]
    if not handles:
        return None
    lines = mirrors.lines_of(handles)
    starts = np.array([*plan.decode_starts, *(entry.start for entry in entries)], np.int64)
    counts = np.ones(len(handles), np.int64)
    if entries:
        counts[decode_count:] = [entry.count for entry in entries]
    known = starts + counts
    mirrors.ensure_columns(int(known.max()) + 1)
    overwrites = [
        _write_explicit(entry, int(lines[decode_count + index]), mirrors)
        for index, entry in enumerate(entries)
        if entry.source is TokenSource.EXPLICIT
    ]
    query_start = np.zeros(len(handles) + 1, np.int64)
    np.cumsum(counts, out=query_start[1:])
    row_count = int(query_start[-1])
    owner = np.repeat(np.arange(len(handles)), counts)
    positions = np.arange(row_count) + (starts - query_start[:-1])[owner]
    bucket = padded(row_count, buckets)
    tokens = np.zeros(bucket, np.int32)
    tokens[:row_count] = mirrors.tokens[lines[owner], positions]
    groups = _host_rows(mirrors, lines, owner, positions, query_start, known, block_size, bucket)
    selection = _select(plan, entries, decode_count)
    selected_sequences = np.array(selection.sequences, np.int64)
    sampled = np.array(selection.sampled, np.int64)
    sampled_sequences = selected_sequences[sampled]
    codes = encode_pending(sampled, parity)
    pending = mirrors.overwrite(
        [handles[index] for index in sampled_sequences.tolist()],
        lines[sampled_sequences],
        known[sampled_sequences],
        codes,
    )
    last_rows = query_start[1:][selected_sequences] - 1
    return Batch(
        handles=handles,
        lines=lines,
        known=known,
        tokens=tokens,
        groups=groups,
        row_count=row_count,
        selected_sequences=selected_sequences,
        selected_rows=None if len(last_rows) == bucket else last_rows.astype(np.int32),
        selection_of_entry=selection.of_entry,
        logits_selections=selection.logits,
        parity=parity,
        codes=codes,
        sampled_selections=sampled,
        pending=pending,
        overwrites=overwrites,
    )


def undo_batch(batch: Batch, mirrors: SequenceMirrors) -> None:
    """Takes back what `build_batch` wrote into the mirrors."""
    mirrors.undo(batch.pending)
    for overwrite in reversed(batch.overwrites):
        mirrors.undo(overwrite)


@dataclass(slots=True)
class _Selection:
    """Which sequences are selected, which of the selected sample or answer logits, and where each
    entry stands.
    """

    sequences: list[int]
    sampled: list[int]
    logits: list[int]
    of_entry: list[int]


def _select(plan: StepPlan, entries: list[Entry], decode_count: int) -> _Selection:
    everyone = list(range(decode_count))
    selection = _Selection(everyone, list(everyone), [], [])
    sequence = decode_count
    for entry in plan.entries:
        if not entry.count:
            selection.of_entry.append(-1)
            continue
        if entry.sample or entry.return_logits:
            index = len(selection.sequences)
            selection.of_entry.append(index)
            selection.sequences.append(sequence)
            if entry.sample:
                selection.sampled.append(index)
            if entry.return_logits:
                selection.logits.append(index)
        else:
            selection.of_entry.append(-1)
        sequence += 1
    return selection


def _write_explicit(entry: Entry, line: int, mirrors: SequenceMirrors) -> Overwrite:
    positions = np.arange(entry.start, entry.start + entry.count, dtype=np.int64)
    lines = np.full(entry.count, line, np.int64)
    tokens = np.asarray(entry.token_ids, np.int32)
    return mirrors.overwrite([entry.handle] * entry.count, lines, positions, tokens)


def _host_rows(
    mirrors: SequenceMirrors,
    lines: IndexArray,
    owner: IndexArray,
    positions: IndexArray,
    query_start: IndexArray,
    known: IndexArray,
    block_size: int,
    bucket: int,
) -> list[HostRows]:
    """Where the rows lie, by group; the groups differ in slots and tables alone."""
    width = -(-int(known.max()) // block_size)
    count = len(positions)
    padded_positions = np.zeros(bucket, np.int32)
    padded_positions[:count] = positions
    row_lines, entries, offsets = lines[owner], positions // block_size, positions % block_size
    starts, contexts = query_start.astype(np.int32), known.astype(np.int32)
    groups = []
    for table in mirrors.tables:
        slots = np.full(bucket, -1, np.int64)
        slots[:count] = table[row_lines, entries].astype(np.int64) * block_size + offsets
        tables = table[lines, :width]
        groups.append(HostRows(padded_positions, slots, starts, contexts, tables, block_size))
    return groups
