"""Steps: taken in, handed to the engine, answered."""

from __future__ import annotations

from mlxrt.core.accept import accept
from mlxrt.core.answers import Accepted, InFlight, Replayed
from mlxrt.core.commit import commit, malformed
from mlxrt.core.session import Session
from mlxrt.core.state import State, stale_epoch
from mlxrt.core.step import Phase, StepInput, StepOutcome, StepPlan, StepReply, Timings
from mlxrt.core.step_errors import numbered
from mlxrt.core.ticket import Ticket
from mlxrt.core.validate import validate
from mlxrt.errors import MlxrtError, Reason, field_invalid

_INFLIGHT_RETRY_MS = 5


def take(state: State, session: Session, step: StepInput) -> Accepted | Replayed | InFlight:
    """As Core.accept, less the lease."""
    expected = session.next_step_number
    if step.step_number != expected:
        return _repeat(state, session, step)
    if len(session.inflight) >= state.limits.max_inflight_steps:
        raise MlxrtError(
            Reason.TOO_MANY_INFLIGHT_STEPS,
            f"max_inflight_steps = {state.limits.max_inflight_steps} are in flight",
            metadata={"max_inflight_steps": str(state.limits.max_inflight_steps)},
            retry_delay_ms=_INFLIGHT_RETRY_MS,
        )
    draft = validate(session, step, state.bounds)
    ticket = Ticket(state.next_ticket, session, step.step_number, step.digest)
    state.next_handle = accept(session, step, draft, ticket, state.next_handle, state.bounds)
    state.next_ticket += 1
    session.next_step_number += 1
    session.inflight.append(ticket)
    if not session.queue:
        state.ready.append(session)
    session.queue.append(ticket)
    state.tickets[ticket.number] = ticket
    state.counters.steps_accepted += 1
    state.counters.sequences_registered += len(draft.registered)
    return Accepted(ticket.number)


def _repeat(state: State, session: Session, step: StepInput) -> Replayed | InFlight:
    """Answers a number that is not the next one."""
    number, expected = step.step_number, session.next_step_number
    if number < 1:
        raise field_invalid("step_number", "the first step is 1")
    if number > expected:
        raise numbered(Reason.STEP_GAP, expected, f"step {number} skips step {expected}")
    stored = session.replies.find(number)
    if stored is not None:
        _check_same(stored[0], step, expected)
        state.counters.steps_replayed += 1
        return Replayed(stored[1])
    for ticket in session.inflight:
        if ticket.step_number == number:
            _check_same(ticket.digest, step, expected)
            return InFlight(ticket.number)
    raise numbered(Reason.STEP_STALE, expected, f"the reply of step {number} is gone")


def _check_same(digest: bytes, step: StepInput, expected: int) -> None:
    if digest != step.digest:
        raise numbered(
            Reason.STEP_MISMATCH,
            expected,
            f"step {step.step_number} was accepted with other content",
        )


def hand_out(state: State) -> StepPlan | None:
    """As Core.next_plan."""
    if not state.ready:
        return None
    session = state.ready.popleft()
    ticket = session.queue[0]
    plan = _sampling_plan(ticket) if ticket.forwarded else _first_plan(ticket)
    state.handed_out.append(ticket)
    if state.retired:
        plan.retired = state.retired + plan.retired
    state.retired = []
    if plan.phase is Phase.FORWARD:
        # What the session releases meanwhile is retired behind the sampling, which names it still.
        ticket.forwarded = True
        return plan
    session.queue.popleft()
    ticket.handed_out = True
    state.retired = ticket.retired_after
    if session.queue:
        state.ready.append(session)
    return plan


def _first_plan(ticket: Ticket) -> StepPlan:
    plan = ticket.plan
    if ticket.doomed is not None:
        plan.cancelled = True
        plan.copies, plan.entries, plan.decode_handles, plan.decode_starts = [], [], [], []
        return plan
    if ticket.irregular:
        _leave_out_failed(ticket)
    if ticket.masks is not None:
        plan.masks = ticket.handles_of(ticket.masks)
    elif ticket.sampled is not None:
        plan.phase = Phase.FORWARD
    return plan


def _sampling_plan(ticket: Ticket) -> StepPlan:
    plan = StepPlan(ticket.number, phase=Phase.SAMPLING)
    if ticket.doomed is not None:
        plan.cancelled = True
    elif ticket.masks is not None:
        plan.masks = ticket.handles_of(ticket.masks)
    return plan


def _leave_out_failed(ticket: Ticket) -> None:
    """Takes the rows of sequences that failed since acceptance out of the plan."""
    plan = ticket.plan
    sequences = ticket.decode_sequences
    ticket.absent = {i for i, sequence in enumerate(sequences) if sequence.failure is not None}
    for write in ticket.writes:
        write.left_out = write.sequence.failure is not None
    present = [i for i in range(len(sequences)) if i not in ticket.absent]
    plan.decode_handles = [sequences[i].handle for i in present]
    plan.decode_starts = [ticket.decode_starts[i] for i in present]
    entries = plan.entries
    plan.entries = []
    for run in ticket.items:
        if run.entry_index is not None:
            entry = entries[run.entry_index]
            run.entry_index = None
            if run.sequence.failure is None:
                run.entry_index = len(plan.entries)
                plan.entries.append(entry)


def settle(state: State, outcome: StepOutcome, now_ms: int) -> list[tuple[int, StepReply]]:
    """As Core.finish."""
    assert state.handed_out, "an outcome without a plan"
    ticket = state.handed_out.popleft()
    assert ticket.number == outcome.ticket, "outcomes come in the order of the plans"
    session = ticket.session
    assert session.inflight[0] is ticket, "a session's steps run in order"
    if ticket.forwarded and not ticket.forward_ended:
        _end_forward(state, session, ticket, outcome)
        session.renew(now_ms)
        return []
    session.inflight.popleft()
    del state.tickets[ticket.number]
    reply = _conclude(state, session, ticket, outcome)
    state.pool.give_back(ticket.quarantine)
    if reply.error is None:
        reply.free_blocks = state.pool.free_counts()
    if state.sessions.get(session.session_id) is session:
        session.replies.store(ticket.digest, reply)
        session.renew(now_ms)
    return [(ticket.number, reply)]


def _end_forward(state: State, session: Session, ticket: Ticket, outcome: StepOutcome) -> None:
    """The step goes on once its masks are there; a forward that failed discards it now."""
    ticket.forward_ended = True
    ticket.forward_timings = outcome.timings
    if outcome.failure is not None and ticket.doomed is None:
        _fail_behind(state, session, ticket)
        ticket.doomed = outcome.failure
        state.wake(session)


def _conclude(state: State, session: Session, ticket: Ticket, outcome: StepOutcome) -> StepReply:
    """Commits the step or discards it, with those behind it."""
    error = ticket.doomed
    if error is None and ticket.epoch != session.epoch:
        error = stale_epoch(session, ticket.epoch)
    if error is None:
        failure = outcome.failure or malformed(ticket, outcome)
        if failure is None:
            reply = commit(ticket, outcome, state.bounds)
            if ticket.forward_timings is not None:
                reply.timings = _both(ticket.forward_timings, outcome.timings)
            for reason in ticket.failed:
                failed = state.counters.sequences_failed
                failed[reason] = failed.get(reason, 0) + 1
            state.counters.steps_committed += 1
            return reply
        error = failure
    state.counters.steps_discarded += 1
    if ticket.doomed is None:
        _fail_behind(state, session, ticket)
    return StepReply(ticket.step_number, error=error, timings=outcome.timings)


def _fail_behind(state: State, session: Session, ticket: Ticket) -> None:
    behind = [each for each in session.inflight if each is not ticket and each.doomed is None]
    state.discard(session, [ticket, *behind])
    for each in behind:
        each.doomed = MlxrtError(
            Reason.PREDECESSOR_FAILED, f"step {ticket.step_number} failed, so this one was not run"
        )
    state.wake(session)


def _both(forward: Timings, sampling: Timings) -> Timings:
    """Where the time of a step in two plans went; the queue is that before its forward."""
    return Timings(
        forward.queue_us,
        forward.build_us + sampling.build_us,
        forward.device_us + sampling.device_us,
        forward.sample_us + sampling.sample_us,
    )
