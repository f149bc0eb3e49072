"""Deferred sampling: two plans of one ticket, what may come between them, who waits for whom."""

from __future__ import annotations

import pytest
from core_client import FACTS, FAILURE, Client, outcome, refused, rows

from mlxrt.core.answers import Accepted, InFlight, Replayed
from mlxrt.core.core import Core
from mlxrt.core.model import Limits
from mlxrt.core.step import Mask, NewSequence, Phase, StepOutcome, StepPlan, StepReply, Timings
from mlxrt.errors import MlxrtError, Reason

LIMITS = Limits(max_inflight_steps=3, max_sessions=3, max_sequences=8, max_mask_rows=3)
ALL = b"\xff" * 16
NONE = b"\0" * 16


@pytest.fixture
def core() -> Core:
    return Core(FACTS, LIMITS)


@pytest.fixture
def blocks(client: Client) -> list[int]:
    return client.allocate(6)[0]


def sample(client: Client, number: int, *masks: Mask, digest: bytes = b"m") -> object:
    ref = client.ref
    return client.core.sample(ref.session_id, ref.epoch, number, masks, digest, client.now_ms)


def refuse(client: Client, reason: Reason, field: str | None, number: int, *masks: Mask) -> None:
    refused(client.core, reason, field, lambda: sample(client, number, *masks, digest=b"other"))


def take(client: Client, phase: Phase, ticket: int) -> StepPlan:
    """The next plan, which must be this one."""
    plan = client.core.next_plan(client.now_ms)
    assert plan is not None
    assert (plan.phase, plan.ticket) == (phase, ticket)
    client.core.check_integrity()
    return plan


def end_forward(client: Client, plan: StepPlan, failure: MlxrtError | None = None) -> None:
    timings = Timings(queue_us=1, build_us=2, device_us=3)
    told = StepOutcome(plan.ticket, timings=timings, failure=failure)
    assert client.core.finish(told, client.now_ms) == []
    client.core.check_integrity()


def end_sampling(client: Client, forward: StepPlan, token: int = 50) -> StepReply:
    told = outcome(forward, token)
    told.timings = Timings(queue_us=9, build_us=20, device_us=30, sample_us=40)
    ((_, reply),) = client.core.finish(told, client.now_ms)
    client.core.check_integrity()
    return reply


def cancel(client: Client, ticket: int) -> StepReply:
    """The sampling is handed out cancelled, and answered."""
    plan = take(client, Phase.SAMPLING, ticket)
    assert plan.cancelled and not plan.masks
    ((_, reply),) = client.core.finish(StepOutcome(ticket, failure=FAILURE), client.now_ms)
    client.core.check_integrity()
    return reply


def waiting(client: Client, blocks: list[int]) -> tuple[int, StepPlan]:
    """A step of sequence 1 whose forward has ended; ticket and plan."""
    client.prefill(1, 3, {0: blocks[:2]})
    ticket = client.accept(decode_ids=[1], deferred=True)
    forward = take(client, Phase.FORWARD, ticket)
    end_forward(client, forward)
    assert client.core.next_plan(0) is None
    return ticket, forward


def test_masks_that_come_after_the_forward(client: Client, blocks: list[int]) -> None:
    ticket, forward = waiting(client, blocks)
    assert client.state(1).position == 3
    assert sample(client, 2, Mask(1, 1, ALL)) == Accepted(ticket)
    plan = take(client, Phase.SAMPLING, ticket)
    assert plan.masks == {forward.decode_handles[0]: ALL}
    reply = end_sampling(client, forward)
    assert (reply.token_ids, client.state(1).position) == ([50], 4)
    assert reply.timings == Timings(1, 22, 33, 40)
    assert sample(client, 2, Mask(1, 1, ALL)) == Replayed(reply)
    assert client.run(decode_ids=[1]).token_ids == [50]


def test_masks_that_come_before_the_forward_is_handed_out_need_one_plan(
    client: Client, blocks: list[int]
) -> None:
    client.prefill(1, 3, {0: blocks[:2]})
    ticket = client.accept(decode_ids=[1], deferred=True)
    sample(client, 2, Mask(1, 1, ALL))
    plan = take(client, Phase.WHOLE, ticket)
    assert plan.masks == {plan.decode_handles[0]: ALL}
    assert end_sampling(client, plan).token_ids == [50]


def test_masks_that_come_while_the_forward_runs(client: Client, blocks: list[int]) -> None:
    client.prefill(1, 3, {0: blocks[:2]})
    ticket = client.accept(decode_ids=[1], deferred=True)
    forward = take(client, Phase.FORWARD, ticket)
    sample(client, 2)
    take(client, Phase.SAMPLING, ticket)
    end_forward(client, forward)
    assert end_sampling(client, forward).token_ids == [50]


def test_later_steps_of_the_session_wait_and_another_session_goes_on(
    client: Client, blocks: list[int]
) -> None:
    ticket, forward = waiting(client, blocks)
    behind = client.accept(decode_ids=[1], deferred=True)
    assert client.core.next_plan(0) is None
    other = Client(client.core, "b")
    other.prefill(1, 3, {0: other.allocate(2)[0]})
    assert other.run(decode_ids=[1]).token_ids == [50]
    assert client.core.queued_count() == 2
    sample(client, 2)
    take(client, Phase.SAMPLING, ticket)
    second = take(client, Phase.FORWARD, behind)
    end_sampling(client, forward)
    end_forward(client, second)
    sample(client, 3)
    take(client, Phase.SAMPLING, behind)
    assert end_sampling(client, second, 51).token_ids == [51]
    assert client.state(1).token_ids == [1, 2, 3, 50, 50, 51]


def test_repeats_and_other_masks(client: Client, blocks: list[int]) -> None:
    ticket, forward = waiting(client, blocks)
    sample(client, 2, Mask(1, 1, ALL))
    assert sample(client, 2, Mask(1, 1, ALL)) == InFlight(ticket)
    refuse(client, Reason.STEP_MISMATCH, None, 2, Mask(1, 1, NONE))
    take(client, Phase.SAMPLING, ticket)
    end_sampling(client, forward)
    refuse(client, Reason.STEP_GAP, None, 3)
    refuse(client, Reason.FIELD_INVALID, "step_number", 0)
    for _ in range(5):
        client.run()
    refuse(client, Reason.STEP_STALE, None, 2)
    client.accept()
    refuse(client, Reason.STEP_MISMATCH, None, 8)


def test_masks_at_fault_leave_the_step_waiting(client: Client, blocks: list[int]) -> None:
    client.prefill(1, 3, {0: blocks[:2]})
    client.prefill(2, 3, {0: blocks[2:4]})
    drafted = rows(1, 1, sample=True, draft_tokens=[7, 8])
    client.accept(items=[drafted, rows(2, 1)], deferred=True)
    end_forward(client, take(client, Phase.FORWARD, 3))
    refuse(client, Reason.FIELD_INVALID, "masks[0].sequence_id", 3, Mask(9, 1, ALL))
    refuse(client, Reason.FIELD_INVALID, "masks[0].sequence_id", 3, Mask(2, 1, ALL))
    refuse(client, Reason.FIELD_INVALID, "masks[0].allowed.shape[0]", 3, Mask(1, 2, ALL * 2))
    mask = Mask(1, 3, ALL * 3)
    refuse(client, Reason.FIELD_INVALID, "masks[1].sequence_id", 3, mask, mask)
    assert client.core.next_plan(0) is None
    sample(client, 3, mask)
    take(client, Phase.SAMPLING, 3)


def test_masks_in_the_step_itself(client: Client, blocks: list[int]) -> None:
    client.prefill(1, 3, {0: blocks[:2]})
    client.prefill(2, 3, {0: blocks[2:4]})
    mask = Mask(1, 1, ALL)
    client.refuse(
        Reason.FIELD_INVALID, "masks[0].sequence_id", decode_ids=[2], masks=[mask]
    )
    client.refuse(
        Reason.FIELD_INVALID, "masks", decode_ids=[1], masks=[mask], deferred=True
    )
    wide = rows(2, 1, sample=True, draft_tokens=[7, 8, 9])
    client.refuse(
        Reason.LIMIT_EXCEEDED, "masks", items=[wide], masks=[Mask(2, 4, ALL * 4)]
    )
    client.accept(decode_ids=[1, 2], masks=[mask])
    plan = take(client, Phase.WHOLE, 3)
    assert plan.masks == {plan.decode_handles[0]: ALL}


def test_the_lease_ends_while_a_step_waits(client: Client, blocks: list[int]) -> None:
    ticket, forward = waiting(client, blocks)
    behind = client.accept(decode_ids=[1])
    assert client.core.next_expiry_ms() == 1_000
    assert client.core.expire(999) == []
    client.core.renew(client.ref, 500)
    assert client.core.expire(1_000) == []
    (ended,) = client.core.expire(1_500)
    assert ended.session_id == "a"
    assert client.core.free_blocks_by_group() == (10,), "its blocks wait for its steps"
    reply = cancel(client, ticket)
    assert reply.error is not None and reply.error.reason is Reason.SESSION_UNKNOWN
    plan = client.core.next_plan(0)
    assert plan is not None and plan.cancelled and plan.ticket == behind
    client.core.finish(StepOutcome(behind, failure=FAILURE), 0)
    assert client.core.free_blocks_by_group() == (16,)
    Client(client.core, "b").accept()
    plan = client.core.next_plan(0)
    assert plan is not None and plan.retired == forward.decode_handles


def test_a_forward_that_runs_keeps_the_session(client: Client, blocks: list[int]) -> None:
    client.prefill(1, 3, {0: blocks[:2]})
    ticket = client.accept(decode_ids=[1], deferred=True)
    forward = take(client, Phase.FORWARD, ticket)
    assert client.core.next_expiry_ms() is None
    assert client.core.expire(5_000) == []
    client.now_ms = 5_000
    end_forward(client, forward)
    assert client.core.next_expiry_ms() == 6_000


def test_a_take_over_discards_the_step_that_waits(client: Client, blocks: list[int]) -> None:
    ticket, _ = waiting(client, blocks)
    client.ref = client.core.resume(client.ref, "resume", 0).session
    client.core.check_integrity()
    assert isinstance(sample(client, 2), InFlight | Accepted)
    reply = cancel(client, ticket)
    assert reply.error is not None and reply.error.reason is Reason.EPOCH_STALE
    assert client.state(1).position == 3
    assert client.run(decode_ids=[1]).token_ids == [50]


def test_a_forward_that_fails_discards_its_step_and_those_behind(
    client: Client, blocks: list[int]
) -> None:
    client.prefill(1, 3, {0: blocks[:2]})
    ticket = client.accept(decode_ids=[1], deferred=True)
    behind = client.accept(decode_ids=[1])
    end_forward(client, take(client, Phase.FORWARD, ticket), FAILURE)
    reply = cancel(client, ticket)
    assert reply.error is FAILURE
    plan = client.core.next_plan(0)
    assert plan is not None and plan.cancelled and plan.ticket == behind
    ((_, last),) = client.core.finish(StepOutcome(behind, failure=FAILURE), 0)
    assert last.error is not None and last.error.reason is Reason.PREDECESSOR_FAILED
    assert client.state(1).position == 3
    assert client.run(decode_ids=[1]).token_ids == [50]


def test_a_forward_that_fails_behind_its_own_sampling(client: Client, blocks: list[int]) -> None:
    client.prefill(1, 3, {0: blocks[:2]})
    ticket = client.accept(decode_ids=[1], deferred=True)
    forward = take(client, Phase.FORWARD, ticket)
    sample(client, 2)
    take(client, Phase.SAMPLING, ticket)
    end_forward(client, forward, FAILURE)
    ((_, reply),) = client.core.finish(StepOutcome(ticket, failure=FAILURE), 0)
    assert reply.error is FAILURE
    assert client.state(1).position == 3


def test_a_predecessor_that_fails_cancels_a_forward_in_the_engine(
    client: Client, blocks: list[int]
) -> None:
    client.prefill(1, 3, {0: blocks[:2]})
    first = client.accept(decode_ids=[1])
    ticket = client.accept(decode_ids=[1], deferred=True)
    plan = take(client, Phase.WHOLE, first)
    forward = take(client, Phase.FORWARD, ticket)
    client.core.finish(outcome(plan, failure=FAILURE), 0)
    client.core.check_integrity()
    end_forward(client, forward)
    reply = cancel(client, ticket)
    assert reply.error is not None and reply.error.reason is Reason.PREDECESSOR_FAILED


def test_a_sequence_released_while_its_step_waits_is_retired_after_it(
    client: Client, blocks: list[int]
) -> None:
    """Or the engine could give its place away, and sampling would write into another's."""
    ticket, forward = waiting(client, blocks)
    client.core.free_sequences(client.ref, "free", [1], 0, free_blocks=True)
    other = Client(client.core, "b")
    other.accept(new_sequences=[NewSequence(1, [1])])
    plan = client.core.next_plan(0)
    assert plan is not None and plan.retired == []
    client.core.finish(outcome(plan), 0)
    sample(client, 2, Mask(1, 1, ALL))
    assert take(client, Phase.SAMPLING, ticket).retired == []
    assert end_sampling(client, forward).token_ids == [50]
    other.accept()
    plan = client.core.next_plan(0)
    assert plan is not None and plan.retired == forward.decode_handles
