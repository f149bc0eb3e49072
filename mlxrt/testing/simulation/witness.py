"""A core that is watched: a second book of sessions, owners and tokens, kept in the plainest way,
and compared with every answer."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any, TypeVar

from mlxrt_client.v1 import step_pb2

from mlxrt.core.answers import (
    Accepted,
    ClosedSession,
    InFlight,
    OpenedSession,
    Replayed,
    ResumedSession,
    SessionRef,
    SessionSnapshot,
)
from mlxrt.core.core import Core
from mlxrt.core.model import Limits, ModelFacts
from mlxrt.core.step import Mask, StepInput, StepOutcome, StepPlan, StepReply
from mlxrt.errors import MlxrtError, Reason
from mlxrt.server.encode import encode_step
from mlxrt.testing.fake_model import FakeModel
from mlxrt.testing.simulation.commits import disagreements
from mlxrt.testing.simulation.foretold import Foretold
from mlxrt.testing.simulation.history import History, Settled, comparable
from mlxrt.testing.simulation.watched import WatchedSession, WatchedStep, copied, watch

T = TypeVar("T")
LOOK_EVERY = 8
"""Calls between two proofs that a refusal changes nothing, or of all invariants."""
_DISCARDS = {
    Reason.EXECUTION_FAILED, Reason.PREDECESSOR_FAILED, Reason.EPOCH_STALE, Reason.SESSION_UNKNOWN,
}  # fmt: skip


class WitnessCore(Core):
    """Core that writes the commits down and reports every disagreement to `history.violations`.

    Args:
        model: asked for the tokens after given ones.
        instance: number of this start of the server.
        now_us: the time of the run.

    Attributes:
        sessions: the second book, of open sessions.
        injected: by ticket, how many rows the engine failed on purpose.
        failed_plans: tickets that the engine failed on purpose.
        no_expiry_before_ms: end of the grace after a sleep of the machine.
        expired_waiting: sessions that ended while a step of theirs waited for masks.
    """

    def __init__(
        self,
        facts: ModelFacts,
        limits: Limits,
        model: FakeModel,
        history: History,
        instance: int,
        now_us: Callable[[], int],
    ) -> None:
        super().__init__(facts, limits)
        self.sessions: dict[str, WatchedSession] = {}
        self.injected: dict[int, int] = {}
        self.failed_plans: set[int] = set()
        self.no_expiry_before_ms = 0
        self.expired_waiting = 0
        self._foretold = Foretold(model)
        self._history = history
        self._instance = instance
        self._now_us = now_us
        self._owners: dict[tuple[int, int], str] = {}
        self._answers: dict[tuple[str, str], Any] = {}
        self._steps: dict[int, WatchedStep] = {}
        self._run: set[int] = set()
        self._calls = 0

    def report(self, what: str) -> None:
        """Notes a violation."""
        self._history.violations.append(f"instance {self._instance}: {what}")

    def check(self, condition: bool, what: str) -> None:
        """Notes a violation unless `condition`."""
        if not condition:
            self.report(what)

    def open_session(
        self, request_id: str, ttl_ms: int, client_name: str, *,
        session_id: str, session_seed: int, now_ms: int,
    ) -> OpenedSession:  # fmt: skip
        """As Core; a repeat must be answered alike."""
        answer = self._refusable(lambda: super(WitnessCore, self).open_session(
            request_id, ttl_ms, client_name,
            session_id=session_id, session_seed=session_seed, now_ms=now_ms,
        ))  # fmt: skip
        if self._is_first("", request_id, answer):
            self.sessions[session_id] = WatchedSession(1, answer.lease_ttl_ms, now_ms)
        return answer

    def renew(self, ref: SessionRef, now_ms: int) -> int:
        """As Core."""
        answer = self._refusable(lambda: super(WitnessCore, self).renew(ref, now_ms))
        self._served(ref, now_ms)
        return answer

    def resume(self, ref: SessionRef, request_id: str, now_ms: int) -> ResumedSession:
        """As Core; the epoch rises once for each request id."""
        answer = self._refusable(lambda: super(WitnessCore, self).resume(ref, request_id, now_ms))
        session = self.sessions[ref.session_id]
        if self._is_first(f"{ref.session_id} resume", request_id, answer):
            self.check(ref.epoch == session.epoch, "a stale owner took a session over")
            session.epoch += 1
            if session.inflight:
                self._doom(session)
        session.renewed_ms = now_ms
        return answer

    def read_session(
        self,
        ref: SessionRef,
        sequence_ids: Set[int] | None = None,
        *,
        include_tables: bool,
        include_tokens: bool,
    ) -> SessionSnapshot:
        """As Core; V6: it agrees with the commits."""
        answer = super().read_session(
            ref, sequence_ids, include_tables=include_tables, include_tokens=include_tokens
        )
        session = self.sessions[ref.session_id]
        for what in session.differs(answer, sequence_ids, with_tokens=include_tokens):
            self.report(f"V6: {what}")
        leased = {(group, b) for group, ids in answer.leased_blocks.items() for b in ids}
        owned = {key for key, owner in self._owners.items() if owner == ref.session_id}
        self.check(leased == owned, "V5: leased blocks")
        return answer

    def close_session(self, ref: SessionRef, now_ms: int) -> ClosedSession:
        """As Core."""
        answer = self._refusable(lambda: super(WitnessCore, self).close_session(ref, now_ms))
        self._served(ref, now_ms)
        self._ended(answer)
        return answer

    def expire(self, now_ms: int) -> list[ClosedSession]:
        """As Core; exactly the sessions end whose last success is a lease ago."""
        due = {
            name
            for name, session in self.sessions.items()
            if session.renewed_ms + session.ttl_ms <= now_ms
            and (not session.inflight or self._steps[session.inflight[0]].waits_for_masks)
        }
        self.expired_waiting += sum(bool(self.sessions[name].inflight) for name in due)
        answer = super().expire(now_ms)
        self.check(not answer or now_ms >= self.no_expiry_before_ms, "P19: expired in the grace")
        ended = {each.session_id for each in answer}
        self.check(ended == due, f"expired {sorted(ended)} where {sorted(due)} were due")
        for each in answer:
            self._ended(each)
        return answer

    # ---- blocks and sequences outside a step ----

    def allocate_blocks(
        self, ref: SessionRef, request_id: str, counts: Mapping[int, int], now_ms: int
    ) -> dict[int, list[int]]:
        """As Core; V5: nobody else has the blocks."""
        answer = self._refusable(
            lambda: super(WitnessCore, self).allocate_blocks(ref, request_id, counts, now_ms)
        )
        if self._is_first(self._owner_key(ref), request_id, copied(answer)):
            for group, ids in answer.items():
                self.check(len(ids) == counts[group], "another number of blocks than asked")
                for block_id in ids:
                    self.check((group, block_id) not in self._owners, "V5: a block has two owners")
                    self._owners[group, block_id] = ref.session_id
        self._served(ref, now_ms)
        return answer

    def free_blocks(
        self, ref: SessionRef, request_id: str, blocks: Mapping[int, Sequence[int]], now_ms: int
    ) -> tuple[int, ...]:
        """As Core."""
        answer = self._refusable(
            lambda: super(WitnessCore, self).free_blocks(ref, request_id, blocks, now_ms)
        )
        if self._is_first(self._owner_key(ref), request_id, answer):
            self._disown(ref.session_id, blocks)
        self._served(ref, now_ms)
        return answer

    def free_sequences(
        self, ref: SessionRef, request_id: str, sequence_ids: Sequence[int], now_ms: int, *,
        free_blocks: bool,
    ) -> dict[int, list[int]]:  # fmt: skip
        """As Core."""
        answer = self._refusable(lambda: super(WitnessCore, self).free_sequences(
            ref, request_id, sequence_ids, now_ms, free_blocks=free_blocks
        ))  # fmt: skip
        if self._is_first(self._owner_key(ref), request_id, copied(answer)):
            for sequence_id in sequence_ids:
                del self.sessions[ref.session_id].sequences[sequence_id]
            self._disown(ref.session_id, answer)
        self._served(ref, now_ms)
        return answer

    # ---- steps ----

    def accept(
        self, session_id: str, epoch: int, step: StepInput, now_ms: int
    ) -> Accepted | Replayed | InFlight:
        """As Core; V3: numbers are 1, 2, 3, … under the epoch of the owner."""
        answer = self._refusable(
            lambda: super(WitnessCore, self).accept(session_id, epoch, step, now_ms)
        )
        session = self.sessions[session_id]
        self.check(epoch == session.epoch, "a stale epoch was served")
        session.renewed_ms = now_ms
        if isinstance(answer, Accepted):
            session.accepted += 1
            self.check(step.step_number == session.accepted, "V3: accepted out of order")
            session.inflight.append(answer.ticket)
            self._steps[answer.ticket] = watch(session_id, session, step)
        elif isinstance(answer, InFlight):
            self.check(answer.ticket in session.inflight, "a repeat waits for another step")
        return answer

    def sample(
        self, session_id: str, epoch: int, step_number: int, masks: Sequence[Mask],
        digest: bytes, now_ms: int,
    ) -> Accepted | Replayed | InFlight:  # fmt: skip
        """As Core; masks are taken once."""
        answer = self._refusable(lambda: super(WitnessCore, self).sample(
            session_id, epoch, step_number, masks, digest, now_ms
        ))  # fmt: skip
        session = self.sessions[session_id]
        self.check(epoch == session.epoch, "a stale epoch was served")
        session.renewed_ms = now_ms
        if isinstance(answer, Accepted):
            watched = self._steps[answer.ticket]
            right = watched.step.step_number == step_number and watched.step.deferred
            self.check(right and not watched.masked, "masks went to another step")
            watched.masked = True
            watched.masks = {mask.sequence_id: mask for mask in masks}
        return answer

    def next_plan(self, now_ms: int) -> StepPlan | None:
        """As Core."""
        return self._surely(lambda: super(WitnessCore, self).next_plan(now_ms))

    def will_run(self, ticket: int, touched: set[tuple[int, int]]) -> None:
        """Hears that the engine runs a plan, and which blocks it reads or writes for it."""
        self.check(ticket not in self._run, "P2: a step runs twice")
        self._run.add(ticket)
        owner = self._steps[ticket].session_id
        for key in touched:
            self.check(
                self._owners.get(key, owner) == owner, "V5: a step touches another session's block"
            )
            self.check(
                key in self._owners or key[1] not in self._state.pool.free_ids(key[0]),
                "V5: a step touches a free block",
            )

    def finish(self, outcome: StepOutcome, now_ms: int) -> list[tuple[int, StepReply]]:
        """As Core; the reply is what the commits so far make it."""
        answer = self._surely(lambda: super(WitnessCore, self).finish(outcome, now_ms))
        if not answer:
            self._forward_ended(self._steps[outcome.ticket], outcome, now_ms)
        for ticket, reply in answer:
            watched = self._steps.pop(ticket)
            session = self.sessions.get(watched.session_id)
            if session is not None and ticket in session.inflight:
                self.check(session.inflight.pop(0) == ticket, "V3: settled out of order")
                session.settled += 1
                session.renewed_ms = now_ms
                if reply.error is not None:
                    if not watched.doomed:
                        self._doom(session)
                    self._find_fallen(SessionRef(watched.session_id, session.epoch), session)
            self._settle(ticket, watched, reply, session)
        self._calls += 1
        if self._calls % LOOK_EVERY == 0:
            self._surely(self.check_integrity)
        return answer

    def _forward_ended(self, watched: WatchedStep, outcome: StepOutcome, now_ms: int) -> None:
        """A step that defers its sampling waits for its masks now, unless its forward failed."""
        self.check(watched.step.deferred and not watched.forwarded, "a step has no reply")
        watched.forwarded = True
        session = self.sessions.get(watched.session_id)
        if session is not None:
            session.renewed_ms = now_ms
            if outcome.failure is not None:
                self._doom(session)

    def _doom(self, session: WatchedSession) -> None:
        """No step in flight now will commit; where sequences then stand only the server knows."""
        for ticket in session.inflight:
            self._steps[ticket].doomed = True
        for sequence in session.sequences.values():
            sequence.position = None

    def _find_fallen(self, ref: SessionRef, session: WatchedSession) -> None:
        """Who failed with another one in a step that is then discarded hears of it in no reply."""
        state = super().read_session(ref, include_tables=False, include_tokens=False)
        for each in state.sequences:
            if each.failure is not None and each.failure.reason is Reason.BLOCK_UNFILLED:
                self.check(session.failures > 0, "P6: a sequence failed with none that did")
                session.sequences[each.sequence_id].failed = True

    def _settle(
        self, ticket: int, watched: WatchedStep, reply: StepReply,
        session: WatchedSession | None,
    ) -> None:  # fmt: skip
        committed = reply.error is None
        if committed:
            self.check(watched.masked, "a step was sampled before its masks came")
            self.check(session is not None, "a step committed after its session")
            current = session is None or session.epoch == watched.epoch
            self.check(current, "P10: a stale step committed")
            self.check(ticket in self._run, "a step committed that never ran")
            self.check(ticket not in self.failed_plans, "a failed step committed")
            for what in disagreements(
                watched, reply, self.injected.get(ticket, 0), session, self._foretold
            ):
                self.report(what)
        elif reply.error is not None:
            reason = reply.error.reason
            self.check(reason in _DISCARDS, f"a step ended with {reply.error}")
            for_no_reason = reason is Reason.EXECUTION_FAILED and ticket not in self.failed_plans
            self.check(not for_no_reason, "a step failed for no reason")
        message = step_pb2.StepResponse()
        encode_step(message, reply, False)
        self._history.settled.append(
            Settled(
                self._now_us(), self._instance, watched.session_id, watched.epoch,
                watched.step.step_number, watched.step.digest.hex(), comparable(message), committed,
            )
        )  # fmt: skip

    # ---- the book ----

    def _refusable(self, call: Callable[[], T]) -> T:
        self._calls += 1
        before = self.digest() if self._calls % LOOK_EVERY == 0 else None
        try:
            return call()
        except MlxrtError as error:
            if before is not None:
                self.check(self.digest() == before, f"P4: refused, but changed: {error}")
            raise
        except Exception:
            self.report(traceback.format_exc())
            raise

    def _surely(self, call: Callable[[], T]) -> T:
        try:
            return call()
        except Exception:
            self.report(traceback.format_exc())
            raise

    def _is_first(self, owner: str, request_id: str, answer: Any) -> bool:
        if (owner, request_id) not in self._answers:
            self._answers[owner, request_id] = answer
            return True
        earlier = self._answers[owner, request_id]
        self.check(earlier == answer, "V4: a repeated request was answered otherwise")
        return False

    @staticmethod
    def _owner_key(ref: SessionRef) -> str:
        return f"{ref.session_id} {ref.epoch}"

    def _served(self, ref: SessionRef, now_ms: int) -> None:
        session = self.sessions.get(ref.session_id)
        self.check(session is not None and session.epoch == ref.epoch, "a stale owner was served")
        if session is not None:
            session.renewed_ms = now_ms

    def _disown(self, session_id: str, blocks: Mapping[int, Sequence[int]]) -> None:
        for group, ids in blocks.items():
            for block_id in ids:
                owner = self._owners.pop((group, block_id), None)
                self.check(owner == session_id, "V5: a block was freed by another than its owner")

    def _ended(self, closed: ClosedSession) -> None:
        session = self.sessions.pop(closed.session_id)
        owned = [key for key, owner in self._owners.items() if owner == closed.session_id]
        freed = sum(closed.freed_block_counts.values())
        self.check(freed == len(owned), f"{freed} blocks freed, {len(owned)} owned")
        self.check(closed.released_sequence_count == len(session.sequences), "sequences released")
        for key in owned:
            del self._owners[key]
