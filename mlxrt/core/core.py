"""The core's one public class: every call of a client, every plan to the engine, every outcome from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mlxrt.core.answers import (
    Accepted,
    ClosedSession,
    Counters,
    InFlight,
    OpenedSession,
    Replayed,
    ResumedSession,
    SessionRef,
    SessionSnapshot,
)
from mlxrt.core.model import Limits, ModelFacts
from mlxrt.core.step import StepInput, StepOutcome, StepPlan, StepReply


class Core:
    """Sessions, leases, blocks, sequences and steps of one loaded model.

    Synchronous; not thread-safe: one thread makes all calls. Time is passed in as `now_ms`, milliseconds of a monotonic
    clock. Every method that raises MlxrtError has changed nothing, not even the lease; every call of a session that
    succeeds renews its lease.

    Field paths in errors follow the proto: where the forms hold a dict by group, the index is the position in the
    dict's order, so callers keep the order of the message. (A dict can't hold a group twice: the decoder refuses that.)
    """

    def __init__(self, facts: ModelFacts, limits: Limits) -> None:
        """Starts with no session and every block free."""
        raise NotImplementedError

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
        """Opens a session named `session_id`; a repeat of `request_id` gets the first answer and ignores the id passed in.

        `session_seed` (64 bits) is the random number from which sequences without a seed derive theirs.

        Raises:
            MlxrtError: FIELD_INVALID, LIMIT_EXCEEDED (ttl), REQUEST_MISMATCH, TOO_MANY_SESSIONS.
        """
        raise NotImplementedError

    def renew(self, ref: SessionRef, now_ms: int) -> int:
        """Renews the lease and answers the milliseconds until it ends.

        Raises:
            MlxrtError: SESSION_UNKNOWN, EPOCH_STALE; so does every method that takes a SessionRef.
        """
        raise NotImplementedError

    def resume(self, ref: SessionRef, request_id: str, now_ms: int) -> ResumedSession:
        """Takes the session over: epoch + 1; steps in flight are discarded now and answered EPOCH_STALE by finish.

        Raises:
            MlxrtError: REQUEST_MISMATCH.
        """
        raise NotImplementedError

    def get_session(
        self, ref: SessionRef, now_ms: int, *, include_tables: bool, include_tokens: bool
    ) -> SessionSnapshot:
        """Answers what the session holds."""
        raise NotImplementedError

    def close_session(self, ref: SessionRef, now_ms: int) -> ClosedSession:
        """Closes the session and frees what it holds; blocks that a step in flight may touch are free once it has ended."""
        raise NotImplementedError

    def expire(self, now_ms: int) -> list[ClosedSession]:
        """Ends every session whose lease has run out and that has no step in flight.

        A session whose lease has run out lives until this is called: a call that comes first renews it.
        """
        raise NotImplementedError

    def next_expiry_ms(self) -> int | None:
        """When expire has something to do at the earliest; None while nothing can expire."""
        raise NotImplementedError

    # ---- blocks and sequences outside a step ----

    def allocate_blocks(
        self, ref: SessionRef, request_id: str, counts: Mapping[int, int], now_ms: int
    ) -> dict[int, list[int]]:
        """Leases `counts[group]` blocks of each group, all or none; answers their ids in the order of `counts`.

        Raises:
            MlxrtError: FIELD_INVALID, REQUEST_MISMATCH, NO_FREE_BLOCKS.
        """
        raise NotImplementedError

    def free_blocks(
        self, ref: SessionRef, request_id: str, blocks: Mapping[int, Sequence[int]], now_ms: int
    ) -> tuple[int, ...]:
        """Gives blocks back; answers the free blocks by group. Those that a step in flight may touch join when it ends.

        Raises:
            MlxrtError: FIELD_INVALID, REQUEST_MISMATCH, BLOCK_NOT_LEASED, BLOCK_IN_USE.
        """
        raise NotImplementedError

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
        raise NotImplementedError

    # ---- steps ----

    def accept(
        self, session_id: str, epoch: int, step: StepInput, now_ms: int
    ) -> Accepted | Replayed | InFlight:
        """Validates a step whole and takes it, or answers what a repeat of it gets.

        The caller has checked what lies in one field alone and is not in StepInput's types (enum values, sampling rules,
        unsupported fields, a group twice in one list). After Accepted, next_plan will hand the step out.

        Raises:
            MlxrtError: as ExecutionService.Step lists them.
        """
        raise NotImplementedError

    def next_plan(self, now_ms: int) -> StepPlan | None:
        """Hands out the next accepted step, one per session in turn; None where there is none.

        Sequences released outside a step are in `retired` of the next plan handed out, whose ever it is.
        """
        raise NotImplementedError

    def finish(self, outcome: StepOutcome, now_ms: int) -> list[tuple[int, StepReply]]:
        """Commits or discards the step and answers its reply.

        Outcomes come in the order of the plans. Every ticket is answered once, by its own outcome: a failed step discards
        those behind it at once, but they (handed out or not) are answered PREDECESSOR_FAILED when their outcomes come.
        """
        raise NotImplementedError

    # ---- what others may ask ----

    def free_blocks_by_group(self) -> tuple[int, ...]:
        """Blocks that can be leased now, by group."""
        raise NotImplementedError

    def session_count(self) -> int:
        """Open sessions."""
        raise NotImplementedError

    def inflight_count(self) -> int:
        """Accepted steps without an outcome, over all sessions."""
        raise NotImplementedError

    def queued_count(self) -> int:
        """Accepted steps that next_plan has not handed out."""
        raise NotImplementedError

    @property
    def counters(self) -> Counters:
        """What happened since the start. Read only."""
        raise NotImplementedError

    def check_integrity(self) -> None:
        """Proves the invariants over the whole state; slow.

        Raises:
            AssertionError: the state is broken; nothing may commit any more.
        """
        raise NotImplementedError

    def digest(self) -> bytes:
        """Hash of the whole state: equal before and after every refused call."""
        raise NotImplementedError
