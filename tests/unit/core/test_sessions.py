"""Sessions: opening, leases, take-over, closing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from core_client import Client, finish_all, outcome, refused, rows, session_ref

from mlxrt.core.answers import OpenedSession, SessionRef
from mlxrt.core.core import Core
from mlxrt.core.step import NewSequence, StepInput
from mlxrt.errors import Reason


def open_session(
    core: Core, request_id: str = "r", ttl_ms: int = 0, name: str = "n", now: int = 0
) -> OpenedSession:
    return core.open_session(
        request_id, ttl_ms, name, session_id=f"id-{request_id}", session_seed=1, now_ms=now
    )


@pytest.mark.parametrize(
    ("asked", "granted"), [(0, 30_000), (1, 1_000), (5_000, 5_000), (600_000, 600_000)]
)
def test_ttl_is_granted_within_its_limits(core: Core, asked: int, granted: int) -> None:
    assert open_session(core, ttl_ms=asked).lease_ttl_ms == granted


def test_ttl_past_its_maximum_is_refused(core: Core) -> None:
    error = refused(
        core, Reason.LIMIT_EXCEEDED, "lease_ttl_ms", lambda: open_session(core, ttl_ms=600_001)
    )
    assert error.metadata == {"limit": "max_lease_ttl_ms", "maximum": "600000", "value": "600001"}


@pytest.mark.parametrize("request_id", ["", "x" * 65, "ü" * 33])
def test_request_id_must_be_1_to_64_bytes(core: Core, request_id: str) -> None:
    refused(core, Reason.FIELD_INVALID, "request_id", lambda: open_session(core, request_id))


def test_client_name_is_at_most_128_bytes(core: Core) -> None:
    open_session(core, name="x" * 128)
    refused(
        core, Reason.FIELD_INVALID, "client_name", lambda: open_session(core, "r2", name="ü" * 65)
    )


def test_repeated_open_gets_the_first_answer_and_other_content_is_refused(core: Core) -> None:
    first = open_session(core, ttl_ms=2_000)
    assert open_session(core, ttl_ms=2_000) == first
    assert core.session_count() == 1
    refused(core, Reason.REQUEST_MISMATCH, None, lambda: open_session(core, ttl_ms=2_001))


def test_one_session_too_many_is_refused(core: Core) -> None:
    for request_id in ("a", "b", "c"):
        open_session(core, request_id)
    error = refused(core, Reason.TOO_MANY_SESSIONS, None, lambda: open_session(core, "d"))
    assert error.retry_delay_ms


def calls(core: Core, ref: SessionRef, step: StepInput) -> list[Callable[[], object]]:
    """Every call that names a session."""
    return [
        lambda: core.renew(ref, 0),
        lambda: core.get_session(ref, 0, include_tables=False, include_tokens=False),
        lambda: core.close_session(ref, 0),
        lambda: core.allocate_blocks(ref, "x", {0: 1}, 0),
        lambda: core.free_blocks(ref, "x", {}, 0),
        lambda: core.free_sequences(ref, "x", [1], 0, free_blocks=False),
        lambda: core.accept(ref.session_id, ref.epoch, step, 0),
        lambda: core.resume(ref, "x", 0),
    ]


def test_unknown_session_and_stale_epoch_are_refused_everywhere(client: Client) -> None:
    core, ref = client.core, client.ref
    core.resume(ref, "take-over", 0)
    for wrong, reason in (
        (session_ref(client, 1), Reason.EPOCH_STALE),
        (session_ref(client, 3), Reason.EPOCH_STALE),
        (type(ref)("nobody", 1), Reason.SESSION_UNKNOWN),
    ):
        for call in calls(core, wrong, client.step()):
            refused(core, reason, None, call)


def test_lease_ends_and_any_call_renews_it(client: Client) -> None:
    core = client.core
    assert core.next_expiry_ms() == 1_000
    assert core.renew(client.ref, 900) == 1_000
    assert core.expire(1_899) == []
    (closed,) = core.expire(1_900)
    assert closed.session_id == "a"
    assert core.counters.sessions_expired == 1
    assert core.next_expiry_ms() is None
    refused(core, Reason.SESSION_UNKNOWN, None, lambda: core.renew(client.ref, 1_900))


def test_expiry_frees_everything(client: Client) -> None:
    client.prefill(1, 3, client.allocate(2))
    (closed,) = client.core.expire(10_000)
    assert closed.freed_block_counts == {0: 2}
    assert closed.released_sequence_count == 1
    assert client.core.free_blocks_by_group() == (16,)
    assert client.core.counters.blocks_freed["expiry"] == 2


def test_refused_call_does_not_renew(client: Client) -> None:
    client.now_ms = 900
    client.refuse(Reason.SEQUENCE_UNKNOWN, "decode_sequence_ids[0]", decode_ids=[5])
    assert client.core.next_expiry_ms() == 1_000


def test_step_in_flight_keeps_the_lease_and_its_commit_renews_it(client: Client) -> None:
    core = client.core
    client.accept()
    assert core.next_expiry_ms() is None
    assert core.expire(50_000) == []
    finish_all(core, 60_000)
    assert core.next_expiry_ms() == 61_000


def test_take_over_discards_what_is_in_flight(client: Client) -> None:
    core = client.core
    client.prefill(1, 3, client.allocate(2))
    running = client.accept(decode_ids=[1])
    plan = core.next_plan(0)
    waiting = client.accept(decode_ids=[1])
    assert plan is not None
    answer = core.resume(client.ref, "take-over", 0)
    assert answer.session.epoch == 2
    assert answer.next_step_number == 4
    assert core.resume(client.ref, "take-over", 0) == answer
    client.ref = answer.session
    assert client.state(1).position == 3
    ((ticket, reply),) = core.finish(outcome(plan), 0)
    assert ticket == running
    assert reply.error is not None
    assert reply.error.reason is Reason.EPOCH_STALE
    second = core.next_plan(0)
    assert second is not None
    assert second.cancelled
    ((ticket, reply),) = core.finish(outcome(second), 0)
    assert ticket == waiting
    assert reply.error is not None
    assert reply.error.reason is Reason.EPOCH_STALE
    assert core.counters.steps_discarded == 2
    assert client.run(decode_ids=[1]).token_ids == [50]
    assert client.state(1).token_ids == [1, 2, 3, 50, 50]


def test_closing_answers_what_it_freed_and_steps_in_flight_get_session_unknown(
    client: Client,
) -> None:
    core = client.core
    tables = client.allocate(3)
    ticket = client.accept(
        new_sequences=[NewSequence(1, [1, 2], {0: tables[0][:1]})], items=[rows(1, 2)]
    )
    plan = core.next_plan(0)
    assert plan is not None
    closed = core.close_session(client.ref, 0)
    assert closed.freed_block_counts == {0: 3}
    assert closed.released_sequence_count == 1
    assert core.free_blocks_by_group() == (13,), "the running step may still write"
    core.check_integrity()
    ((answered, reply),) = core.finish(outcome(plan), 0)
    assert answered == ticket
    assert reply.error is not None
    assert reply.error.reason is Reason.SESSION_UNKNOWN
    assert core.free_blocks_by_group() == (16,)


def test_snapshot_says_what_the_session_holds(client: Client) -> None:
    blocks = client.allocate(3)[0]
    client.prefill(9, 5, {0: [blocks[2], blocks[0]]})
    client.run(new_sequences=[NewSequence(4, [7])])
    client.accept(decode_ids=[9])
    snapshot = client.core.get_session(client.ref, 0, include_tables=True, include_tokens=False)
    assert snapshot.next_step_number == 4
    assert snapshot.inflight_step_numbers == [3]
    assert snapshot.leased_blocks == {0: sorted(blocks)}
    four, nine = snapshot.sequences
    assert (four.sequence_id, four.position, four.token_count, four.tables) == (4, 0, 1, {})
    assert (nine.sequence_id, nine.position, nine.token_count) == (9, 5, 6)
    assert nine.tables == {0: [blocks[2], blocks[0]]}
    assert nine.token_ids == ()
