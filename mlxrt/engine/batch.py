"""From a plan to the arrays of its step, in host memory.

Symbols: S sequences with rows, T rows, Tb rows after padding, K selected rows (`Selection`).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from mlxrt.attention.metadata import HostRows
from mlxrt.core.step import Entry, Phase, StepPlan, TokenSource
from mlxrt.engine.mirrors import (
    IndexArray,
    IntArray,
    Overwrite,
    SequenceMirrors,
    encode_pending,
)
from mlxrt.engine.prompt_rows import PromptRows
from mlxrt.engine.selection import Selection


@dataclass(slots=True)
class Batch:
    """The rows of one step.

    Attributes:
        handles: of the sequences, decode sequences first.
        lines: [S] their lines in the mirrors.
        ends: [S] position behind the rows, those of drafts included.
        tokens: [Tb] int32; negative codes where the token is still on the device.
        groups: where the rows lie, by group.
        row_count: T.
        selection: the rows that go through the head.
        selected_sequences: [K] index into S.
        selected_positions: [K] position of the token that comes after the row.
        selected_rows: [K] index into T; None where all Tb rows are selected.
        parity: tells this step's codes from those of the step before.
        codes: what the sampled tokens stand as until they are read; one per `coded`.
        coded: [k] `selection.coded`.
        pending: the mirrors' places of those tokens; None until `place_codes`.
        overwrites: what explicit tokens and drafts replaced.
        prompt: the rows that answer logprobs of the prompt; None without any.
    """

    handles: list[int]
    lines: IndexArray
    ends: IndexArray
    tokens: IntArray
    groups: list[HostRows]
    row_count: int
    selection: Selection
    selected_sequences: IndexArray
    selected_positions: IndexArray
    selected_rows: IntArray | None
    parity: int
    codes: IntArray
    coded: IndexArray
    pending: Overwrite | None = None
    overwrites: list[Overwrite] = field(default_factory=list)
    prompt: PromptRows | None = None

    @property
    def bucket_row_count(self) -> int:
        """Tb."""
        return len(self.tokens)


_NO_CODES: IntArray = np.zeros(0, np.int32)


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

    Writes explicit tokens, drafts and, unless sampling is deferred, the codes of the tokens to be
    sampled into the mirrors; `undo_batch` takes all of it back.
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
        counts[decode_count:] = [entry.count + len(entry.draft_tokens) for entry in entries]
    ends = starts + counts
    mirrors.ensure_columns(int(ends.max()) + 1)
    overwrites: list[Overwrite] = []
    for entry, line in zip(entries, lines[decode_count:].tolist(), strict=True):
        if entry.source is TokenSource.EXPLICIT:
            overwrites.append(_write(entry, line, entry.start, entry.token_ids, mirrors))
            mirrors.keep_prompt(line, entry.start)
        if entry.draft_tokens:
            end = entry.start + entry.count
            overwrites.append(_write(entry, line, end, entry.draft_tokens, mirrors))
    query_start = np.zeros(len(handles) + 1, np.int64)
    np.cumsum(counts, out=query_start[1:])
    row_count = int(query_start[-1])
    owner = np.repeat(np.arange(len(handles)), counts)
    positions = np.arange(row_count) + (starts - query_start[:-1])[owner]
    bucket = padded(row_count, buckets)
    tokens = np.zeros(bucket, np.int32)
    tokens[:row_count] = mirrors.tokens[lines[owner], positions]
    groups = _host_rows(mirrors, lines, owner, positions, query_start, ends, block_size, bucket)
    selection = Selection.of(plan)
    selected_sequences = np.array(selection.sequences, np.int64)
    backs = np.array(selection.backs, np.int64)
    coded = np.array(selection.coded, np.int64)
    selected_rows = query_start[1:][selected_sequences] - 1 - backs
    batch = Batch(
        handles=handles,
        lines=lines,
        ends=ends,
        tokens=tokens,
        groups=groups,
        row_count=row_count,
        selection=selection,
        selected_sequences=selected_sequences,
        selected_positions=ends[selected_sequences] - backs,
        selected_rows=None if len(selected_rows) == bucket else selected_rows.astype(np.int32),
        parity=parity,
        codes=_NO_CODES,
        coded=coded,
        overwrites=overwrites,
        prompt=PromptRows.of(entries, lines[decode_count:], query_start[decode_count:-1]),
    )
    if plan.phase is not Phase.FORWARD:
        place_codes(batch, mirrors, parity)
    return batch


def place_codes(batch: Batch, mirrors: SequenceMirrors, parity: int) -> None:
    """Writes the codes of the tokens that the step samples into the mirrors."""
    sequences = batch.selected_sequences[batch.coded]
    batch.parity = parity
    batch.codes = encode_pending(batch.coded, parity)
    batch.pending = mirrors.overwrite(
        [batch.handles[index] for index in sequences.tolist()],
        batch.lines[sequences],
        batch.ends[sequences],
        batch.codes,
    )


def undo_batch(batch: Batch, mirrors: SequenceMirrors) -> None:
    """Takes back what `build_batch` and `place_codes` wrote into the mirrors."""
    if batch.pending is not None:
        mirrors.undo(batch.pending)
    for overwrite in reversed(batch.overwrites):
        mirrors.undo(overwrite)


def _write(
    entry: Entry, line: int, start: int, token_ids: Sequence[int], mirrors: SequenceMirrors
) -> Overwrite:
    """Puts tokens of the entry's sequence into the mirrors, from position `start` on."""
    count = len(token_ids)
    positions = np.arange(start, start + count, dtype=np.int64)
    lines = np.full(count, line, np.int64)
    tokens = np.asarray(token_ids, np.int32)
    return mirrors.overwrite([entry.handle] * count, lines, positions, tokens)


def _host_rows(
    mirrors: SequenceMirrors,
    lines: IndexArray,
    owner: IndexArray,
    positions: IndexArray,
    query_start: IndexArray,
    ends: IndexArray,
    block_size: int,
    bucket: int,
) -> list[HostRows]:
    """Where the rows lie, by group; the groups differ in slots and tables alone."""
    width = -(-int(ends.max()) // block_size)
    count = len(positions)
    padded_positions = np.zeros(bucket, np.int32)
    padded_positions[:count] = positions
    row_lines, entries, offsets = lines[owner], positions // block_size, positions % block_size
    starts, contexts = query_start.astype(np.int32), ends.astype(np.int32)
    groups = []
    for table in mirrors.tables:
        slots = np.full(bucket, -1, np.int64)
        slots[:count] = table[row_lines, entries].astype(np.int64) * block_size + offsets
        tables = table[lines, :width]
        groups.append(HostRows(padded_positions, slots, starts, contexts, tables, block_size))
    return groups
