"""Acceptance: makes a validated step's releases, registrations and table changes true, and plans
the rest.
"""

from __future__ import annotations

from collections.abc import Iterable

from mlxrt.core.block import block_ids
from mlxrt.core.bounds import Bounds
from mlxrt.core.draft import Draft
from mlxrt.core.fill import make_copies
from mlxrt.core.mask_checks import sampled_rows
from mlxrt.core.sequence import Sequence
from mlxrt.core.session import Session
from mlxrt.core.step import Entry, Item, Registration, StepInput, StepPlan, TableUpdate, TokenSource
from mlxrt.core.ticket import Copy, ItemRun, Ticket, Write


def accept(
    session: Session,
    step: StepInput,
    draft: Draft,
    ticket: Ticket,
    next_handle: int,
    bounds: Bounds,
) -> int:
    """Applies `draft` and fills `ticket`, its plan included; answers the next free handle.

    Cannot fail: `draft` was made by validate from the state as it is.
    """
    plan = ticket.plan
    _release(session, draft, plan)
    for sequence in session.unregistered:
        register(plan, sequence)
    session.unregistered.clear()
    for sequence_id, sequence in draft.registered.items():
        sequence.handle = next_handle
        next_handle += 1
        session.sequences[sequence_id] = sequence
        register(plan, sequence)
    for block, change in draft.refs.items():
        session.count_names(block, change)
    if draft.distrust:
        session.distrust_all()
    _change_tables(session, draft, plan)
    _copy(draft, ticket)
    ticket.reads = draft.reads
    for sequence, meant in draft.meant.items():
        sequence.meant_position, sequence.meant_tables = meant
    _run_decodes(draft, ticket, bounds)
    _run_items(draft, ticket, step, bounds)
    if step.deferred:
        ticket.sampled = sampled_rows(step)
    elif step.masks:
        plan.masks = ticket.handles_of(tuple(step.masks))
    return next_handle


def register(plan: StepPlan, sequence: Sequence) -> None:
    """Tells the engine all that is committed of the sequence."""
    plan.registrations.append(
        Registration(
            sequence.handle,
            sequence.tokens[:],
            sequence.sampling,
            sequence.seed,
            sequence.generated_count,
        )
    )
    for group, table in enumerate(sequence.tables):
        if table:
            plan.table_updates.append(
                TableUpdate(sequence.handle, group, 0, block_ids(table), len(table))
            )


def _release(session: Session, draft: Draft, plan: StepPlan) -> None:
    for sequence_id, sequence in draft.released.items():
        del session.sequences[sequence_id]
        sequence.disarm()
        if sequence in session.unregistered:
            del session.unregistered[sequence]
        else:
            plan.retired.append(sequence.handle)


def _change_tables(session: Session, draft: Draft, plan: StepPlan) -> None:
    for sequence, change in draft.changes.items():
        sequence.tables = change.tables
        for group, first, ids, length in change.updates:
            plan.table_updates.append(TableUpdate(sequence.handle, group, first, ids, length))
        if change.replaced:
            sequence.committed = sequence.planned = 0
            for earlier in session.inflight:
                earlier.superseded.add(sequence)
                earlier.irregular = True
        if change.replaced or change.pierced:
            sequence.distrust()


def _copy(draft: Draft, ticket: Ticket) -> None:
    for source, destination in draft.copies:
        ticket.plan.copies.append((source.group, source.block_id, destination.block_id))
        ticket.copies.append(Copy(source, destination))
    make_copies(ticket)


def _run_decodes(draft: Draft, ticket: Ticket, bounds: Bounds) -> None:
    """Plans the decode ids; each takes the token sampled last and leaves one more."""
    block_size = bounds.block_size
    sequences = draft.decodes
    starts = [sequence.planned for sequence in sequences]
    ticket.decode_sequences = sequences
    ticket.decode_starts = starts
    ticket.plan.decode_handles = [sequence.handle for sequence in sequences]
    ticket.plan.decode_starts = starts
    tails = ticket.decode_tails = [sequence.tails for sequence in sequences]
    if draft.checked_decodes:
        _run_checked(draft, ticket, bounds)
    checked = draft.checked_decodes
    for index, sequence in enumerate(sequences):
        if checked and index in checked:
            continue
        end = starts[index] + 1
        filled = (end - 1) % block_size + 1
        for block in tails[index]:
            block.filled = filled
        sequence.planned = end
        sequence.known += 1


def _run_checked(draft: Draft, ticket: Ticket, bounds: Bounds) -> None:
    """Plans the decode ids that did not take the plain path, and opens it to them."""
    decoded = [ticket.decode_sequences[index] for index in draft.checked_decodes]
    _write(draft, ticket, decoded)
    for index in draft.checked_decodes:
        sequence = ticket.decode_sequences[index]
        ticket.decode_tails[index] = ()
        if sequence.failure is not None:
            ticket.absent.add(index)
            continue
        _advance(sequence, sequence.planned, 1, bounds)
        sequence.known += 1
        sequence.arm(bounds)
    if ticket.absent:
        present = [i for i in range(len(ticket.decode_starts)) if i not in ticket.absent]
        ticket.irregular = True
        ticket.plan.decode_handles = [ticket.decode_sequences[i].handle for i in present]
        ticket.plan.decode_starts = [ticket.decode_starts[i] for i in present]


def _run_items(draft: Draft, ticket: Ticket, step: StepInput, bounds: Bounds) -> None:
    ticket.items = draft.items
    _write(draft, ticket, {run.sequence for run in draft.items})
    for run, item in zip(draft.items, step.items, strict=True):
        if run.count:
            _run_item(run, item, ticket.plan, bounds)


def _run_item(run: ItemRun, item: Item, plan: StepPlan, bounds: Bounds) -> None:
    sequence = run.sequence
    run.entry_index = len(plan.entries)
    assert item.source is not None
    plan.entries.append(
        Entry(
            sequence.handle,
            run.start,
            run.count,
            item.source,
            item.token_ids if item.source is TokenSource.EXPLICIT else (),
            run.sample,
            run.return_logits,
            run.draft_tokens,
            run.prompt_rows,
            sequence.prompt_top or 0,
        )
    )
    _advance(sequence, run.start, run.count, bounds)
    if run.token_ids is not None:
        sequence.known = sequence.planned
        sequence.given = True
    if run.sample:
        sequence.known += 1
        sequence.given = True
    if run.draft_tokens:
        sequence.unsettled = True
        sequence.disarm()
    else:
        sequence.arm(bounds)


def _advance(sequence: Sequence, start: int, count: int, bounds: Bounds) -> None:
    """Moves the planned position behind the rows and notes what their check has shown to be
    computed.
    """
    keeps = sequence.verified and start <= sequence.planned
    for group in range(bounds.group_count):
        first = bounds.first_read(group, start)
        held = sequence.checked_from[group]
        sequence.checked_from[group] = held if keeps and held <= first else first
    sequence.verified = True
    sequence.planned = start + count


def _write(draft: Draft, ticket: Ticket, sequences: Iterable[Sequence]) -> None:
    """Counts the writes of `sequences`."""
    wanted = set(sequences)
    for sequence, block, lowest, end, base, drafted in draft.writes:
        if sequence in wanted:
            write = Write(sequence, block, lowest, end, base, drafted)
            write.left_out = sequence.failure is not None
            write.make()
            ticket.writes.append(write)
