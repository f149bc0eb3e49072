"""The invariants, proved over the whole state."""

from __future__ import annotations

from collections import Counter

from mlxrt.core.block import Block
from mlxrt.core.bounds import Bounds
from mlxrt.core.sequence import Sequence
from mlxrt.core.session import Session
from mlxrt.core.state import State


def check_integrity(state: State) -> None:
    """Raises AssertionError where an invariant is broken; slow."""
    _check_pool(state)
    _check_tickets(state)
    for session in state.sessions.values():
        _check_refs(session)
        _check_numbers(session, state.limits.stored_replies)
        quiet = all(ticket.doomed is not None for ticket in session.inflight)
        for sequence_id, sequence in session.sequences.items():
            assert sequence.sequence_id == sequence_id
            _check_positions(sequence, state.bounds, quiet=quiet)
            _check_verified(sequence, state.bounds)
            _check_plain_path(sequence, state.bounds)


def _check_pool(state: State) -> None:
    """Every block is free, leased to one session, or waiting for a step; id 0 is none of these."""
    waiting = [pair for ticket in state.tickets.values() for pair in ticket.quarantine]
    for group, capacity in enumerate(state.pool.capacities):
        ids = list(state.pool.free_ids(group))
        ids += [block_id for owner, block_id in waiting if owner == group]
        for session in state.sessions.values():
            ids += session.blocks[group]
        assert len(ids) == capacity, f"group {group}: {len(ids)} of {capacity} blocks"
        assert set(ids) == set(range(1, capacity + 1)), f"group {group}: a block twice or 0"


def _check_tickets(state: State) -> None:
    for session in state.sessions.values():
        assert list(session.queue) == [t for t in session.inflight if not t.handed_out]
        next_one = session.queue[0] if session.queue else None
        assert (session in state.ready) == (next_one is not None and next_one.can_go_on)
        assert not any(t.forwarded and not t.handed_out for t in list(session.queue)[1:])
    assert len(set(map(id, state.ready))) == len(state.ready)
    handed_out = {ticket.number for ticket in state.handed_out}
    assert handed_out == {
        t.number
        for t in state.tickets.values()
        if t.handed_out or (t.forwarded and not t.forward_ended)
    }
    for ticket in state.tickets.values():
        assert ticket in ticket.session.inflight


def _check_refs(session: Session) -> None:
    """A block's count is the number of table entries that name it, and tables name leased blocks
    alone.
    """
    counts: Counter[Block] = Counter()
    for sequence in session.sequences.values():
        for group, table in enumerate(sequence.tables):
            for block in table:
                if block is not None:
                    assert session.blocks[group].get(block.block_id) is block, (
                        "table names a block not leased"
                    )
                    counts[block] += 1
    for group, blocks in enumerate(session.blocks):
        for block_id, block in blocks.items():
            assert (block.group, block.block_id) == (group, block_id)
            assert block.refs == counts[block], (
                f"block {block_id}: {block.refs} refs, {counts[block]} entries"
            )
        assert session.shared[group] == sum(block.refs > 1 for block in blocks.values())


def _check_numbers(session: Session, stored_replies: int) -> None:
    first = session.next_step_number - len(session.inflight)
    numbers = [ticket.step_number for ticket in session.inflight]
    assert numbers == list(range(first, session.next_step_number))
    stored = session.replies.step_numbers()
    assert stored == tuple(range(first - len(stored), first)), (
        "stored replies are not the last ones"
    )
    assert len(stored) == min(stored_replies, first - 1)


def _check_positions(sequence: Sequence, bounds: Bounds, *, quiet: bool) -> None:
    assert 0 <= sequence.committed <= len(sequence.tokens) <= bounds.max_length
    assert 0 <= sequence.planned <= sequence.known <= bounds.max_length
    for table in sequence.tables:
        room = len(table) * bounds.block_size
        assert sequence.committed <= room, "committed positions outside the table"
        assert sequence.planned <= room, "planned positions outside the table"
        assert all(b is None or 0 <= b.filled <= bounds.block_size for b in table)
    if quiet or sequence.failure is not None:
        assert sequence.planned == sequence.committed
        assert sequence.known == len(sequence.tokens)
        assert sequence.given == sequence.committed_given


def _check_verified(sequence: Sequence, bounds: Bounds) -> None:
    """What was found computed still is."""
    if not sequence.verified:
        return
    for group, table in enumerate(sequence.tables):
        for position in range(sequence.checked_from[group], sequence.planned):
            block = table[position // bounds.block_size]
            assert block is not None, "verified position in a hole"
            if bounds.windows[group] != 1:
                assert block.filled > position % bounds.block_size, "verified position not computed"


def _check_plain_path(sequence: Sequence, bounds: Bounds) -> None:
    """An open plain path leads through blocks that no other table names, filled up to where the
    sequence stands.
    """
    if sequence.planned >= sequence.decode_limit:
        return
    assert sequence.failure is None
    assert sequence.verified
    assert sequence.given
    assert sequence.known == sequence.planned + 1
    index, offset = divmod(sequence.planned, bounds.block_size)
    assert sequence.decode_limit <= (index + 1) * bounds.block_size
    assert len(sequence.tails) == bounds.group_count
    for group, tail in enumerate(sequence.tails):
        assert sequence.tables[group][index] is tail
        assert tail.refs == 1
        assert tail.is_tail
        assert tail.filled == offset
        assert sequence.checked_from[group] <= bounds.first_read(group, sequence.planned)
