"""Opening, renewing, taking over, reading and ending sessions."""

from __future__ import annotations

from collections.abc import Set

from mlxrt.core.answers import (
    Census,
    ClosedSession,
    OpenedSession,
    ResumedSession,
    SequenceSnapshot,
    SessionRef,
    SessionSnapshot,
)
from mlxrt.core.block import block_ids
from mlxrt.core.sequence import Sequence
from mlxrt.core.session import Session
from mlxrt.core.state import State, stale_epoch
from mlxrt.errors import MlxrtError, Reason, field_invalid, limit_exceeded

_MAX_NAME_BYTES = 128
_SESSIONS_RETRY_MS = 1_000


def open_session(
    state: State,
    request_id: str,
    ttl_ms: int,
    client_name: str,
    *,
    session_id: str,
    session_seed: int,
    now_ms: int,
) -> OpenedSession:
    """As Core.open_session."""
    limits = state.limits
    content = (ttl_ms, client_name)
    answer: OpenedSession | None = state.opens.find(request_id, content)
    if answer is not None:
        return answer
    if ttl_ms < 0:
        raise field_invalid("lease_ttl_ms", "must not be negative")
    if ttl_ms > limits.max_lease_ttl_ms:
        raise limit_exceeded("max_lease_ttl_ms", limits.max_lease_ttl_ms, ttl_ms, "lease_ttl_ms")
    if len(client_name.encode("utf-8", "surrogatepass")) > _MAX_NAME_BYTES:
        raise field_invalid("client_name", f"must be at most {_MAX_NAME_BYTES} bytes")
    if len(state.sessions) >= limits.max_sessions:
        raise MlxrtError(
            Reason.TOO_MANY_SESSIONS,
            f"max_sessions = {limits.max_sessions} are open",
            metadata={"max_sessions": str(limits.max_sessions)},
            retry_delay_ms=_SESSIONS_RETRY_MS,
        )
    assert session_id not in state.sessions, "the shell chose a session id twice"
    granted = max(ttl_ms, limits.min_lease_ttl_ms) if ttl_ms else limits.default_lease_ttl_ms
    state.sessions[session_id] = Session(
        session_id,
        session_seed,
        client_name,
        granted,
        now_ms,
        group_count=state.bounds.group_count,
        stored_replies=limits.stored_replies,
    )
    state.counters.sessions_opened += 1
    answer = OpenedSession(SessionRef(session_id, 1), granted)
    state.opens.store(request_id, content, answer)
    return answer


def resume(state: State, ref: SessionRef, request_id: str, now_ms: int) -> ResumedSession:
    """As Core.resume."""
    session = state.known_session(ref.session_id)
    content = ("resume", ref.epoch)
    answer: ResumedSession | None = session.requests.find(request_id, content)
    if answer is None:
        if ref.epoch != session.epoch:
            raise stale_epoch(session, ref.epoch)
        session.epoch += 1
        state.discard_inflight(session, stale_epoch(session, ref.epoch))
        answer = ResumedSession(
            SessionRef(session.session_id, session.epoch),
            session.lease_ttl_ms,
            session.next_step_number,
        )
        session.requests.clear()
        session.requests.store(request_id, content, answer)
        state.counters.sessions_resumed += 1
    session.renew(now_ms)
    return answer


def snapshot(
    session: Session,
    sequence_ids: Set[int] | None = None,
    *,
    include_tables: bool,
    include_tokens: bool,
) -> SessionSnapshot:
    """As Core.read_session."""
    held = session.sequences
    chosen = held if sequence_ids is None else [each for each in sequence_ids if each in held]
    return SessionSnapshot(
        session.lease_ttl_ms,
        session.next_step_number,
        [ticket.step_number for ticket in session.inflight],
        {group: sorted(blocks) for group, blocks in enumerate(session.blocks) if blocks},
        [
            _sequence_snapshot(
                held[sequence_id],
                include_tables=include_tables,
                include_tokens=include_tokens,
            )
            for sequence_id in sorted(chosen)
        ],
    )


def _sequence_snapshot(
    sequence: Sequence, *, include_tables: bool, include_tokens: bool
) -> SequenceSnapshot:
    tables = {}
    if include_tables:
        tables = {group: block_ids(table) for group, table in enumerate(sequence.tables) if table}
    return SequenceSnapshot(
        sequence.sequence_id,
        sequence.committed,
        len(sequence.tokens),
        tables,
        sequence.tokens.tolist() if include_tokens else (),
        sequence.failure,
    )


def end_session(state: State, session: Session, cause: str) -> ClosedSession:
    """Frees what the session holds; its steps in flight will answer SESSION_UNKNOWN."""
    del state.sessions[session.session_id]
    gone = MlxrtError(Reason.SESSION_UNKNOWN, "the session was closed before the step committed")
    for ticket in session.inflight:
        if ticket.doomed is None:
            ticket.doomed = gone
    state.wake(session)
    state.retire(session, list(session.sequences.values()))
    released = len(session.sequences)
    session.sequences.clear()
    counts = {group: len(blocks) for group, blocks in enumerate(session.blocks) if blocks}
    held = [(group, block_id) for group, blocks in enumerate(session.blocks) for block_id in blocks]
    state.give_back(session, held, cause)
    return ClosedSession(session.session_id, session.client_name, counts, released)


def expire(state: State, now_ms: int) -> list[ClosedSession]:
    """As Core.expire."""
    over = [
        session
        for session in state.sessions.values()
        if session.expiry_ms <= now_ms and session.idle
    ]
    state.counters.sessions_expired += len(over)
    return [end_session(state, session, "expiry") for session in over]


def drain(state: State) -> list[ClosedSession]:
    """As Core.drain."""
    idle = [session for session in state.sessions.values() if session.idle]
    state.counters.sessions_drained += len(idle)
    return [end_session(state, session, "drain") for session in idle]


def census(state: State) -> Census:
    """As Core.census."""
    sessions = state.sessions.values()
    groups = range(state.bounds.group_count)
    return Census(
        sessions=len(sessions),
        sequences=sum(len(session.sequences) for session in sessions),
        inflight_steps=len(state.tickets),
        queued_steps=sum(not ticket.handed_out for ticket in state.tickets.values()),
        free_blocks=state.pool.free_counts(),
        leased_blocks=tuple(sum(len(s.blocks[group]) for s in sessions) for group in groups),
        shared_blocks=tuple(sum(s.shared[group] for s in sessions) for group in groups),
    )


def next_expiry_ms(state: State) -> int | None:
    """As Core.next_expiry_ms."""
    return min(
        (session.expiry_ms for session in state.sessions.values() if session.idle),
        default=None,
    )
