"""The core's one public class: every call of a client, every plan to the engine, every outcome from
it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set

from mlxrt.core import block_calls, sampling_calls, session_calls, step_calls
from mlxrt.core.answers import (
    Accepted,
    Census,
    ClosedSession,
    Counters,
    InFlight,
    OpenedSession,
    Replayed,
    ResumedSession,
    SessionRef,
    SessionSnapshot,
)
from mlxrt.core.digest import digest
from mlxrt.core.integrity import check_integrity
from mlxrt.core.model import Limits, ModelFacts
from mlxrt.core.session import Session
from mlxrt.core.state import State
from mlxrt.core.step import Mask, StepInput, StepOutcome, StepPlan, StepReply


class Core:
    """Sessions, leases, blocks, sequences and steps of one loaded model.

    Synchronous; not thread-safe: one thread makes all calls. Time is passed in as `now_ms`,
    milliseconds of a monotonic clock. Every method that raises MlxrtError has changed nothing, not
    even the lease; every call of a session that succeeds renews its lease.

    Field paths in errors follow the proto: where the forms hold a dict by group, the index is the
    position in the dict's order, so callers keep the order of the message. (A dict can't hold a
    group twice: the decoder refuses that.)
    """

    def __init__(self, facts: ModelFacts, limits: Limits) -> None:
        """Starts with no session and every block free."""
        self._state = State(facts, limits)

    # ---- sessions ----

    def open_session(
        self,
        request_id: str,
        ttl_ms: int,
        client_name: str,
        *,
        session_id: str,
        session_seed: int,
        now_ms: int,
    ) -> OpenedSession:
        """Opens a session named `session_id`; a repeat of `request_id` gets the first answer and
        ignores the id passed in.

        `session_seed` (64 bits) is the random number from which sequences without a seed derive
        theirs.

        Raises:
            MlxrtError: FIELD_INVALID, LIMIT_EXCEEDED (ttl), REQUEST_MISMATCH, TOO_MANY_SESSIONS.
        """
        return session_calls.open_session(
            self._state,
            request_id,
            ttl_ms,
            client_name,
            session_id=session_id,
            session_seed=session_seed,
            now_ms=now_ms,
        )

    def renew(self, ref: SessionRef, now_ms: int) -> int:
        """Renews the lease and answers the milliseconds until it ends.

        Raises:
            MlxrtError: SESSION_UNKNOWN, EPOCH_STALE; so does every method that takes a SessionRef.
        """
        session = self._session(ref)
        session.renew(now_ms)
        return session.lease_ttl_ms

    def resume(self, ref: SessionRef, request_id: str, now_ms: int) -> ResumedSession:
        """Takes the session over: epoch + 1; steps in flight are discarded now and answered
        EPOCH_STALE by finish.

        Raises:
            MlxrtError: REQUEST_MISMATCH.
        """
        return session_calls.resume(self._state, ref, request_id, now_ms)

    def get_session(
        self, ref: SessionRef, now_ms: int, *, include_tables: bool, include_tokens: bool
    ) -> SessionSnapshot:
        """Answers what the session holds."""
        snapshot = self.read_session(
            ref, include_tables=include_tables, include_tokens=include_tokens
        )
        self.renew(ref, now_ms)
        return snapshot

    def read_session(
        self,
        ref: SessionRef,
        sequence_ids: Set[int] | None = None,
        *,
        include_tables: bool,
        include_tokens: bool,
    ) -> SessionSnapshot:
        """As get_session, but changes nothing: for a caller that may refuse the answer.

        Args:
            sequence_ids: leave other sequences out; None for none.
        """
        return session_calls.snapshot(
            self._session(ref), sequence_ids,
            include_tables=include_tables, include_tokens=include_tokens,
        )  # fmt: skip

    def close_session(self, ref: SessionRef, now_ms: int) -> ClosedSession:
        """Closes the session and frees what it holds; blocks that a step in flight may touch are
        free once it has ended.
        """
        del now_ms
        session = self._session(ref)
        self._state.counters.sessions_closed += 1
        return session_calls.end_session(self._state, session, "close")

    def expire(self, now_ms: int) -> list[ClosedSession]:
        """Ends every session whose lease has run out and that has no step in flight, or one that
        waits for masks.

        A session whose lease has run out lives until this is called: a call that comes first renews
        it.
        """
        return session_calls.expire(self._state, now_ms)

    def drain(self) -> list[ClosedSession]:
        """Ends every session that has no step in flight, or one that waits for masks, whatever its
        lease.
        """
        return session_calls.drain(self._state)

    def next_expiry_ms(self) -> int | None:
        """When expire has something to do at the earliest; None while nothing can expire."""
        return session_calls.next_expiry_ms(self._state)

    # ---- blocks and sequences outside a step ----

    def allocate_blocks(
        self, ref: SessionRef, request_id: str, counts: Mapping[int, int], now_ms: int
    ) -> dict[int, list[int]]:
        """Leases `counts[group]` blocks of each group, all or none; answers their ids in the order
        of `counts`.

        Raises:
            MlxrtError: FIELD_INVALID, REQUEST_MISMATCH, NO_FREE_BLOCKS.
        """
        session = self._session(ref)
        answer = block_calls.allocate(self._state, session, request_id, counts)
        session.renew(now_ms)
        return answer

    def free_blocks(
        self, ref: SessionRef, request_id: str, blocks: Mapping[int, Sequence[int]], now_ms: int
    ) -> tuple[int, ...]:
        """Gives blocks back; answers the free blocks by group. Those that a step in flight may
        touch join when it ends.

        Raises:
            MlxrtError: FIELD_INVALID, REQUEST_MISMATCH, BLOCK_NOT_LEASED, BLOCK_IN_USE.
        """
        session = self._session(ref)
        answer = block_calls.free(self._state, session, request_id, blocks)
        session.renew(now_ms)
        return answer

    def free_sequences(
        self,
        ref: SessionRef,
        request_id: str,
        sequence_ids: Sequence[int],
        now_ms: int,
        *,
        free_blocks: bool,
    ) -> dict[int, list[int]]:
        """Releases sequences; answers the blocks given back by group (none unless `free_blocks`).

        Raises:
            MlxrtError: FIELD_INVALID, REQUEST_MISMATCH, SEQUENCE_UNKNOWN.
        """
        session = self._session(ref)
        answer = block_calls.free_sequences(
            self._state, session, request_id, sequence_ids, free_blocks=free_blocks
        )
        session.renew(now_ms)
        return answer

    # ---- steps ----

    def accept(
        self, session_id: str, epoch: int, step: StepInput, now_ms: int
    ) -> Accepted | Replayed | InFlight:
        """Validates a step whole and takes it, or answers what a repeat of it gets.

        The caller has checked what lies in one field alone and is not in StepInput's types (enum
        values, sampling rules, unsupported fields, a group twice in one list). After Accepted,
        next_plan will hand the step out.

        Raises:
            MlxrtError: as ExecutionService.Step lists them.
        """
        session = self._state.session(session_id, epoch)
        answer = step_calls.take(self._state, session, step)
        session.renew(now_ms)
        return answer

    def sample(
        self,
        session_id: str,
        epoch: int,
        step_number: int,
        masks: Sequence[Mask],
        digest: bytes,
        now_ms: int,
    ) -> Accepted | Replayed | InFlight:
        """Gives a step that deferred its sampling its masks, or answers what a repeat of them gets.

        `digest` identifies the masks as StepInput.digest does a step. After Accepted, next_plan
        will hand the sampling out.

        Raises:
            MlxrtError: as DeferredSampling lists them.
        """
        session = self._state.session(session_id, epoch)
        answer = sampling_calls.take_masks(self._state, session, step_number, masks, digest)
        session.renew(now_ms)
        return answer

    def next_plan(self, now_ms: int) -> StepPlan | None:
        """Hands out the next accepted step, one per session in turn; None where there is none.

        A step that defers its sampling is handed out as two plans (`Phase`), unless its masks are
        there when its turn comes.

        Sequences released outside a step are in `retired` of the next plan handed out, whose ever
        it is.
        """
        del now_ms
        return step_calls.hand_out(self._state)

    def finish(self, outcome: StepOutcome, now_ms: int) -> list[tuple[int, StepReply]]:
        """Commits or discards the step and answers its reply; nothing for a forward whose step
        defers its sampling.

        Outcomes come in the order of the plans. Every ticket is answered once, by its own outcome:
        a failed step discards those behind it at once, but they (handed out or not) are answered
        PREDECESSOR_FAILED when their outcomes come.
        """
        return step_calls.settle(self._state, outcome, now_ms)

    # ---- what others may ask ----

    def _session(self, ref: SessionRef) -> Session:
        return self._state.session(ref.session_id, ref.epoch)

    def free_blocks_by_group(self) -> tuple[int, ...]:
        """Blocks that can be leased now, by group."""
        return self._state.pool.free_counts()

    def session_count(self) -> int:
        """Open sessions."""
        return len(self._state.sessions)

    def inflight_count(self) -> int:
        """Accepted steps without an outcome, over all sessions."""
        return len(self._state.tickets)

    def was_accepted(self, session_id: str, step_number: int) -> bool:
        """Whether an open session's step of this number was accepted, so that a call with it is a
        repeat.
        """
        session = self._state.sessions.get(session_id)
        return session is not None and step_number < session.next_step_number

    def inflight_ticket(self, session_id: str, step_number: int) -> int | None:
        """The ticket of a session's accepted step; None where that has an outcome or there is
        none.
        """
        session = self._state.sessions.get(session_id)
        for ticket in session.inflight if session is not None else ():
            if ticket.step_number == step_number:
                return ticket.number
        return None

    def queued_count(self) -> int:
        """Accepted steps that next_plan has not handed out whole."""
        return sum(not ticket.handed_out for ticket in self._state.tickets.values())

    def census(self) -> Census:
        """How much of everything there is now; costs a look at each session."""
        return session_calls.census(self._state)

    @property
    def counters(self) -> Counters:
        """What happened since the start. Read only."""
        return self._state.counters

    def check_integrity(self) -> None:
        """Proves the invariants over the whole state; slow.

        Raises:
            AssertionError: the state is broken; nothing may commit any more.
        """
        check_integrity(self._state)

    def digest(self) -> bytes:
        """Hash of the whole state: equal before and after every refused call."""
        return digest(self._state)
