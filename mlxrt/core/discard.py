"""Discard: takes back what steps that do not commit had planned."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from mlxrt.core.block import Block
from mlxrt.core.bounds import Bounds
from mlxrt.core.fill import undo
from mlxrt.core.sequence import Sequence
from mlxrt.core.session import Session
from mlxrt.core.ticket import Ticket


def discard(session: Session, tickets: list[Ticket], bounds: Bounds) -> list[Sequence]:
    """Takes `tickets` back: all steps of the session that could still commit, oldest first.

    Positions, tokens and computed positions of blocks are as before them. Where a step may have run
    and written below that, the slots hold nobody knows what: they count as not computed, and a
    sequence that stood past them stands before them now.

    Returns:
        the sequences of which the engine may know other things than the core now; each needs a new
        handle.
    """
    undo(tickets, bounds)
    ran = [ticket for ticket in tickets if ticket.may_have_run]
    damaged = _damage(ran)
    for sequence in session.sequences.values():
        if damaged:
            _step_back(sequence, damaged, bounds)
        sequence.revert()
        sequence.meant_position = sequence.committed
    touched = dict.fromkeys(sequence for ticket in ran for sequence in _named(session, ticket))
    return [
        sequence
        for sequence in touched
        if sequence.failure is None and sequence not in session.unregistered
    ]


def _damage(tickets: Iterable[Ticket]) -> set[Block]:
    """Lowers what counts as computed to below what the steps may have written; answers the blocks
    that lost something.
    """
    damaged: set[Block] = set()
    for ticket in tickets:
        for write in ticket.writes:
            if not write.left_out and write.block.filled > write.lowest:
                write.block.filled = write.lowest
                damaged.add(write.block)
        for copy in ticket.copies:
            if copy.destination.filled > 0:
                copy.destination.filled = 0
                damaged.add(copy.destination)
    return damaged


def _step_back(sequence: Sequence, damaged: set[Block], bounds: Bounds) -> None:
    stood = sequence.committed
    for group, table in enumerate(sequence.tables):
        first = bounds.first_read(group, stood)
        for index, block in enumerate(table):
            if block in damaged and (index + 1) * bounds.block_size > first:
                assert block is not None
                end = index * bounds.block_size + block.filled
                sequence.committed = min(sequence.committed, end)


def _named(session: Session, ticket: Ticket) -> Iterator[Sequence]:
    """The session's sequences that the plan names."""
    handles = {registration.handle for registration in ticket.plan.registrations}
    for sequence in session.sequences.values():
        if sequence.handle in handles:
            yield sequence
    for sequence in (*ticket.decode_sequences, *(run.sequence for run in ticket.items)):
        if session.sequences.get(sequence.sequence_id) is sequence:
            yield sequence
