"""One hash of the whole state, to prove that a refused call changed nothing."""

from __future__ import annotations

import hashlib

from mlxrt.core.block import block_ids
from mlxrt.core.sequence import Sequence
from mlxrt.core.session import Session
from mlxrt.core.state import State
from mlxrt.core.ticket import Ticket


def digest(state: State) -> bytes:
    """BLAKE2b, 32 bytes, over all that a later answer may depend on."""
    content = (
        [state.pool.free_ids(group) for group in range(state.bounds.group_count)],
        state.opens.ids(),
        [_session(session) for session in state.sessions.values()],
        [_ticket(ticket) for ticket in state.tickets.values()],
        [session.session_id for session in state.ready],
        [ticket.number for ticket in state.handed_out],
        state.retired,
        state.next_ticket,
        state.next_handle,
        state.counters,
    )
    return hashlib.blake2b(repr(content).encode(), digest_size=32).digest()


def _session(session: Session) -> object:
    return (
        session.session_id,
        session.seed,
        session.client_name,
        session.lease_ttl_ms,
        session.expiry_ms,
        session.epoch,
        session.next_step_number,
        session.replies.step_numbers(),
        session.requests.ids(),
        [ticket.number for ticket in session.inflight],
        [ticket.number for ticket in session.queue],
        [sequence.sequence_id for sequence in session.unregistered],
        [[(b.block_id, b.refs, b.filled) for b in group.values()] for group in session.blocks],
        [_sequence(sequence) for sequence in session.sequences.values()],
    )


def _sequence(sequence: Sequence) -> object:
    return (
        sequence.sequence_id,
        sequence.handle,
        [block_ids(table) for table in sequence.tables],
        sequence.sampling,
        sequence.prompt_top,
        sequence.prompt_left,
        sequence.seed,
        sequence.tokens,
        sequence.committed,
        sequence.committed_given,
        sequence.planned,
        sequence.known,
        sequence.given,
        sequence.unsettled,
        repr(sequence.failure),
        sequence.meant_position,
        [block_ids(table) for table in sequence.meant_tables],
    )


def _ticket(ticket: Ticket) -> object:
    return (
        ticket.number,
        ticket.session.session_id,
        ticket.epoch,
        ticket.step_number,
        ticket.digest,
        ticket.plan,
        repr(ticket.doomed),
        ticket.handed_out,
        ticket.forwarded,
        ticket.forward_ended,
        ticket.masks,
        ticket.masks_digest,
        ticket.quarantine,
        ticket.retired_after,
        ticket.absent,
        sorted(sequence.handle for sequence in ticket.superseded),
    )
