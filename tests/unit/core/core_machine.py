"""The core, an engine and the model of both, driven one call, plan or outcome at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from random import Random

import hypothesis.strategies as st
import pytest
from core_agreement import same_plans, same_session
from core_commits import Commits, executed
from core_deferral import Deferral
from core_engine import ProvenanceEngine
from core_model import Machine, SessionModel, State, StepEvent
from core_rules import Rules, failed_items
from core_steps import StepMaker
from hypothesis import note
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from mlxrt.core.answers import Accepted, InFlight, Replayed, SessionRef
from mlxrt.core.core import Core
from mlxrt.core.model import Group, GroupKind, Limits, ModelFacts
from mlxrt.core.step import Phase, StepInput, StepPlan, StepReply
from mlxrt.errors import MlxrtError, Reason

TTL_MS = 1_000

FACTS = ModelFacts(
    "test",
    "test",
    7,
    14,
    "float32",
    3,
    (Group(GroupKind.FULL, (0,), 0, 40, 1), Group(GroupKind.WINDOW, (1,), 4, 36, 1)),
    (),
    "",
)
LIMITS = Limits(max_inflight_steps=3, max_sequences=4, max_sessions=2, max_model_length=14)


class CoreMachine(Commits, RuleBasedStateMachine):
    """Two sessions, an engine, and what each should be like."""

    def __init__(self) -> None:
        super().__init__()
        self.machine = Machine(FACTS)
        self.rules = Rules(self.machine, LIMITS.max_sequences)
        self.core = Core(FACTS, LIMITS)
        self.engine = ProvenanceEngine(FACTS)
        self.now_ms = 0
        self.sessions: dict[str, SessionModel] = {}
        self.expiry_ms: dict[str, int] = {}
        self.order: deque[str] = deque()
        self.queued: dict[str, deque[int]] = {}
        self.handed_out: deque[StepPlan] = deque()
        self.owner: dict[int, str] = {}
        self.steps: dict[tuple[str, int], StepInput] = {}
        self.replies: dict[tuple[str, int], StepReply] = {}
        self.doomed: dict[int, Reason] = {}
        self.deferral = Deferral(self.doomed)
        self.planned_ids: dict[int, list[int]] = {}
        self.waiting: list[tuple[int | None, int, int]] = []
        self.free = [group.block_count - 1 for group in FACTS.groups]
        self.opened = self.requests = self.acts = 0
        self.failed_lately = False

    @rule(entropy=st.integers(0, 2**32 - 1))
    def act(self, entropy: int) -> None:
        """One call, plan or outcome, drawn from what can be done now."""
        executed["rules"] += 1
        self.acts += 1
        random = Random(f"{entropy} {self.acts}")
        choices: list[tuple[float, Callable[[Random], None]]] = [(2, self.let_time_pass)]
        if len(self.sessions) < LIMITS.max_sessions:
            choices.append((10, self.open))
        if len(self.handed_out) < 3:
            choices.append((22, self.hand_out))
        if self.handed_out:
            choices.append((30, self.outcome))
        if self.sessions:
            choices += [
                (30, self.step),
                (4, self.allocate),
                (3, self.free_blocks),
                (1, self.free_sequences),
                (3, self.repeat),
                (12, self.sample),
                (0.7, self.take_over),
                (0.3, self.close),
            ]
        weights, actions = zip(*choices, strict=True)
        action = random.choices(actions, weights)[0]
        note(action.__name__)
        action(random)

    # ---- small things ----

    def pick(self, random: Random) -> tuple[str, SessionModel]:
        name = random.choice(list(self.sessions))
        return name, self.sessions[name]

    def ref(self, name: str) -> SessionRef:
        return SessionRef(name, self.sessions[name].epoch)

    def request_id(self) -> str:
        self.requests += 1
        return str(self.requests)

    def refuses(self, reasons: set[Reason], call: Callable[[], object]) -> None:
        """The call is refused for one of `reasons` and changes nothing."""
        before = self.core.digest()
        with pytest.raises(MlxrtError) as caught:
            call()
        assert caught.value.reason in reasons, (caught.value, reasons)
        assert self.core.digest() == before
        executed[caught.value.reason.name] += 1

    def renewed(self, name: str) -> None:
        self.expiry_ms[name] = self.now_ms + TTL_MS

    def give_back(self, name: str, blocks: list[tuple[int, int]]) -> None:
        """Freed blocks join the free ones once the session's steps of now have ended."""
        inflight = self.sessions[name].inflight
        for group, block_id in blocks:
            self.waiting.append((inflight[-1] if inflight else None, group, block_id))
        self.settle_waiting(None)

    def settle_waiting(self, ended: int | None) -> None:
        for ticket, group, _ in self.waiting:
            self.free[group] += ticket == ended
        self.waiting = [each for each in self.waiting if each[0] != ended]

    # ---- sessions ----

    def open(self, random: Random) -> None:
        executed["open"] += 1
        self.opened += 1
        name = f"s{self.opened}"
        arguments = (f"open-{name}", TTL_MS, name)
        first = self.core.open_session(
            *arguments, session_id=name, session_seed=self.opened, now_ms=self.now_ms
        )
        again = self.core.open_session(
            *arguments, session_id="other", session_seed=0, now_ms=self.now_ms
        )
        assert first == again
        self.sessions[name] = SessionModel(self.machine)
        self.queued[name] = deque()
        self.renewed(name)

    def allocate(self, random: Random) -> None:
        executed["allocate"] += 1
        name, session = self.pick(random)
        counts = {g: random.randint(1, 9) for g in self.machine.groups if random.random() < 0.9}
        request_id = self.request_id()

        def call() -> dict[int, list[int]]:
            return self.core.allocate_blocks(self.ref(name), request_id, counts, self.now_ms)

        if any(count > self.free[group] for group, count in counts.items()):
            self.refuses({Reason.NO_FREE_BLOCKS}, call)
            return
        answer = call()
        assert call() == answer
        assert {g: len(ids) for g, ids in answer.items()} == counts
        got = [(group, block_id) for group, ids in answer.items() for block_id in ids]
        taken = {key for each in self.sessions.values() for key in each.planned().blocks}
        taken |= {(group, block_id) for _, group, block_id in self.waiting}
        assert len(set(got)) == len(got)
        assert not taken & set(got)
        session.add(lambda state: state.blocks.update({key: [] for key in got}))
        for group, _ in got:
            self.free[group] -= 1
        self.renewed(name)

    def free_blocks(self, random: Random) -> None:
        executed["free_blocks"] += 1
        name, session = self.pick(random)
        planned = session.planned()
        named = set(planned.named())
        group = random.choice(self.machine.groups)
        leased = [b for g, b in planned.blocks if g == group]
        unnamed = [b for b in leased if (group, b) not in named]
        ids = random.sample(unnamed, random.randint(0, len(unnamed)))
        reasons: set[Reason] = set()
        if random.random() < 0.2:
            extra = random.randrange(FACTS.groups[group].block_count)
            ids.append(extra)
            reasons |= {Reason.FIELD_INVALID} if extra == 0 or ids.count(extra) > 1 else set()
            reasons |= {Reason.BLOCK_NOT_LEASED} if extra not in leased else set()
            reasons |= {Reason.BLOCK_IN_USE} if (group, extra) in named else set()
        request_id = self.request_id()

        def call() -> tuple[int, ...]:
            return self.core.free_blocks(self.ref(name), request_id, {group: ids}, self.now_ms)

        if reasons:
            self.refuses(reasons, call)
            return
        assert call() == call()
        self.drop_blocks(name, [(group, block_id) for block_id in ids])
        self.renewed(name)

    def drop_blocks(self, name: str, gone: list[tuple[int, int]]) -> None:
        def drop(state: State) -> None:
            for key in gone:
                state.drop(key)

        self.sessions[name].add(drop)
        self.give_back(name, gone)

    def free_sequences(self, random: Random) -> None:
        executed["free_sequences"] += 1
        name, session = self.pick(random)
        planned = session.planned()
        free_blocks = random.random() < 0.5
        ids = random.sample(
            [*planned.sequences, 77], random.randint(0, min(2, len(planned.sequences)))
        )
        request_id = self.request_id()

        def call() -> dict[int, list[int]]:
            return self.core.free_sequences(
                self.ref(name), request_id, ids, self.now_ms, free_blocks=free_blocks
            )

        if not ids or 77 in ids:
            self.refuses({Reason.FIELD_INVALID, Reason.SEQUENCE_UNKNOWN}, call)
            return
        answer = call()
        assert call() == answer
        before = set(planned.named())

        def release(state: State) -> None:
            for sequence_id in ids:
                del state.sequences[sequence_id]

        session.add(release)
        gone = sorted(before - set(session.planned().named())) if free_blocks else []
        assert sorted((g, b) for g, each in answer.items() for b in each) == gone
        self.drop_blocks(name, gone)
        self.renewed(name)

    def take_over(self, random: Random) -> None:
        executed["take_over"] += 1
        name, session = self.pick(random)
        old = self.ref(name)
        request_id = self.request_id()
        answer = self.core.resume(old, request_id, self.now_ms)
        assert self.core.resume(old, request_id, self.now_ms) == answer
        session.epoch += 1
        assert answer.session == self.ref(name)
        assert answer.next_step_number == session.next_step_number
        self.doom(name, session, Reason.EPOCH_STALE)
        self.renewed(name)
        self.refuses({Reason.EPOCH_STALE}, lambda: self.core.renew(old, self.now_ms))
        self.refuses(
            {Reason.EPOCH_STALE}, lambda: self.core.resume(old, self.request_id(), self.now_ms)
        )

    def doom(self, name: str, session: SessionModel, reason: Reason) -> None:
        """Every step of the session that could commit will answer `reason`."""
        for ticket in session.inflight:
            self.doomed.setdefault(ticket, reason)
        failed = {i for i, sequence in session.planned().sequences.items() if sequence.failed}
        steps = [event for event in session.events if isinstance(event, StepEvent)]
        executed["failed, then discarded"] += any(failed & (step.ran or set()) for step in steps)
        executed["stepped back"] += session.discard()
        self.wake(name)

    def wake(self, name: str) -> None:
        """A step of the session may go on that waited for masks."""
        queue = self.queued[name]
        if queue and self.deferral.can_go_on(queue[0]) and name not in self.order:
            self.order.append(name)

    def idle(self, name: str) -> bool:
        """Whether nothing but the client brings the session further."""
        inflight = self.sessions[name].inflight
        return not inflight or self.deferral.waits(inflight[0])

    def close(self, random: Random) -> None:
        executed["close"] += 1
        name, _ = self.pick(random)
        ref = self.ref(name)
        self.ended(name, self.core.close_session(ref, self.now_ms).released_sequence_count)
        self.refuses({Reason.SESSION_UNKNOWN}, lambda: self.core.renew(ref, self.now_ms))

    def ended(self, name: str, released: int) -> None:
        session = self.sessions[name]
        planned = session.planned()
        assert released == len(planned.sequences)
        for ticket in session.inflight:
            self.doomed.setdefault(ticket, Reason.SESSION_UNKNOWN)
        self.wake(name)
        self.give_back(name, list(planned.blocks))
        del self.sessions[name], self.expiry_ms[name]

    def let_time_pass(self, random: Random) -> None:
        executed["let_time_pass"] += 1
        self.now_ms += random.choice([1, 10, TTL_MS // 3, TTL_MS // 3, TTL_MS])
        over = [
            name
            for name, expiry_ms in self.expiry_ms.items()
            if expiry_ms <= self.now_ms and self.idle(name)
        ]
        if random.random() < 0.5 and over:
            survivor = over.pop()
            assert self.core.renew(self.ref(survivor), self.now_ms) == TTL_MS
            self.renewed(survivor)
        closed = self.core.expire(self.now_ms)
        assert [each.session_id for each in closed] == over
        for each in closed:
            executed["expired"] += 1
            executed["expired while it waits"] += bool(self.sessions[each.session_id].inflight)
            self.ended(each.session_id, each.released_sequence_count)
        idle = [ms for name, ms in self.expiry_ms.items() if self.idle(name)]
        assert self.core.next_expiry_ms() == min(idle, default=None)

    # ---- steps ----

    def step(self, random: Random) -> None:
        executed["step"] += 1
        name, session = self.pick(random)
        room = [i for i, s in self.sessions.items() if len(s.inflight) < LIMITS.max_inflight_steps]
        if room and random.random() < 0.9:
            name = random.choice(room)
            session = self.sessions[name]
        planned = session.planned()
        step = StepMaker(self.machine, planned, random).draw(session.next_step_number)
        problems = self.rules.problems(planned, step)
        if len(session.inflight) == LIMITS.max_inflight_steps:
            problems = {Reason.TOO_MANY_INFLIGHT_STEPS}

        def call() -> object:
            return self.core.accept(name, session.epoch, step, self.now_ms)

        if problems:
            self.refuses(problems, call)
            return
        answer = call()
        assert isinstance(answer, Accepted)
        assert call() == InFlight(answer.ticket)
        executed["accepted"] += 1
        plan = self.core._state.tickets[answer.ticket]
        executed["plain decodes"] += sum(map(bool, plan.decode_tails))
        dead = failed_items(planned, step)
        starts = self.machine.starts(planned, step, dead)
        event = StepEvent(answer.ticket, step, dead, starts)
        event.unwritten = self.rules.unwritten(planned, step, dead)
        session.add(event)
        session.inflight.append(answer.ticket)
        session.inflight_numbers.append(step.step_number)
        session.next_step_number += 1
        if not self.queued[name]:
            self.order.append(name)
        self.queued[name].append(answer.ticket)
        self.owner[answer.ticket] = name
        if step.deferred:
            self.deferral.numbers[answer.ticket] = step.step_number
        self.steps[name, step.step_number] = step
        self.renewed(name)

    def repeat(self, random: Random) -> None:
        executed["repeat"] += 1
        name, session = self.pick(random)
        back, same = random.choice([-2, -1, 1, 2, 3, 4, 5, 6, 7]), random.random() < 0.7
        number = session.next_step_number - back
        step = self.steps.get((name, number), StepInput(number, b"never sent"))
        if not same:
            step = StepInput(number, b"other")

        def call() -> object:
            return self.core.accept(name, session.epoch, step, self.now_ms)

        done = session.next_step_number - 1 - len(session.inflight)
        if number < 1:
            self.refuses({Reason.FIELD_INVALID}, call)
        elif back < 0:
            self.refuses({Reason.STEP_GAP}, call)
        elif number <= done - LIMITS.stored_replies:
            self.refuses({Reason.STEP_STALE}, call)
        elif not same:
            self.refuses({Reason.STEP_MISMATCH}, call)
        else:
            answer = call()
            self.renewed(name)
            if number <= done:
                assert isinstance(answer, Replayed)
                assert answer.reply is self.replies[name, number]
                executed["replayed"] += 1
            else:
                assert answer == InFlight(session.inflight[number - done - 1])

    def sample(self, random: Random) -> None:
        """Masks for a step that waits for them, or will."""
        name, session = self.pick(random)
        waiting = [t for t in session.inflight if t in self.deferral.numbers]
        if not waiting:
            return
        ticket = random.choice(waiting)
        number = self.deferral.numbers[ticket]

        def call(digest: bytes = b"masks") -> object:
            return self.core.sample(name, session.epoch, number, (), digest, self.now_ms)

        if ticket in self.deferral.masked:
            assert call() == InFlight(ticket)
            self.renewed(name)
            self.refuses({Reason.STEP_MISMATCH}, lambda: call(b"other"))
            return
        executed["sampled"] += 1
        assert call() == Accepted(ticket)
        self.deferral.masked.add(ticket)
        self.renewed(name)
        self.wake(name)

    def hand_out(self, random: Random) -> None:
        executed["hand_out"] += 1
        plan = self.core.next_plan(self.now_ms)
        if plan is None:
            assert not self.order
            return
        name = self.order.popleft()
        assert plan.ticket == self.queued[name][0], "one step of each session in turn"
        assert plan.phase is self.deferral.next_phase(plan.ticket)
        executed[plan.phase.name] += 1
        if plan.phase is Phase.FORWARD:
            self.deferral.forwarded.add(plan.ticket)
        else:
            self.queued[name].popleft()
            if self.queued[name]:
                self.order.append(name)
        assert plan.cancelled == (plan.ticket in self.doomed)
        if not plan.cancelled and plan.phase is not Phase.SAMPLING:
            self.planned_ids[plan.ticket] = self.sessions[name].runnable(plan.ticket)
            executed["overlapped"] += bool(self.handed_out)
        self.handed_out.append(plan)

    def outcome(self, random: Random) -> None:
        executed["outcome"] += 1
        plan = self.handed_out.popleft()
        name = self.owner[plan.ticket]
        fail = random.random() < (0.4 if self.failed_lately else 0.06)
        self.failed_lately = False
        failing: set[int] = set()
        if random.random() < 0.25:
            handles = [*plan.decode_handles, *(entry.handle for entry in plan.entries)]
            failing = {handle for handle in handles if random.random() < 0.3}
        executed["restored"] += sum(new.generated_count > 0 for new in plan.registrations)
        answer = self.engine.run(plan, random, failing, fail=fail)
        if plan.phase is Phase.FORWARD:
            self.forward_ended(name, plan, failing, answer)
            return
        ((ticket, reply),) = self.core.finish(answer, self.now_ms)
        assert ticket == plan.ticket
        if plan.phase is Phase.SAMPLING and not plan.cancelled:
            plan, failing = self.deferral.plans[ticket]
        session = self.sessions.get(name)
        reason = self.doomed.pop(ticket, None)
        self.settle_waiting(ticket)
        if session is not None:
            session.inflight.remove(ticket)
            number = session.inflight_numbers.pop(0)
            assert reply.step_number == number
            self.replies[name, number] = reply
            self.renewed(name)
        if reason is not None:
            assert reply.error is not None
            assert reply.error.reason is reason
            executed[f"doomed by {reason.name}"] += 1
        elif fail and not plan.cancelled:
            assert reply.error is not None
            assert reply.error.reason is Reason.EXECUTION_FAILED
            assert session is not None
            self.doom(name, session, Reason.PREDECESSOR_FAILED)
            executed["failed"] += 1
        else:
            assert session is not None
            self.committed(session, plan, failing, reply)

    @invariant()
    def agrees(self) -> None:
        self.core.check_integrity()
        assert self.core.free_blocks_by_group() == tuple(self.free)
        assert self.core.session_count() == len(self.sessions)
        assert self.core.queued_count() == sum(map(len, self.queued.values()))
        for name, session in self.sessions.items():
            if self.acts % 3 == 0:
                self.renewed(name)
                same_session(self.core, self.ref(name), self.now_ms, session)
                same_plans(self.core, name, session)
