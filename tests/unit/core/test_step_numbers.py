"""Step numbers: a retry never runs twice."""

from __future__ import annotations

from core_client import FACTS, Client, finish_all, refused

from mlxrt.core.answers import InFlight, Replayed
from mlxrt.core.core import Core
from mlxrt.core.model import Limits
from mlxrt.core.step import StepInput
from mlxrt.errors import Reason


def send(client: Client, number: int, digest: bytes = b"same") -> object:
    return client.core.accept(client.ref.session_id, client.ref.epoch, StepInput(number, digest), 0)


def refuse(
    client: Client, reason: Reason, number: int, expected: int, digest: bytes = b"same"
) -> None:
    error = refused(client.core, reason, None, lambda: send(client, number, digest))
    assert error.metadata == {"expected_step_number": str(expected)}


def test_the_first_step_is_1(client: Client) -> None:
    refused(client.core, Reason.FIELD_INVALID, "step_number", lambda: send(client, 0))
    refuse(client, Reason.STEP_GAP, 2, expected=1)


def test_repeats_get_the_same_ticket_then_the_same_reply(client: Client) -> None:
    send(client, 1)
    assert send(client, 1) == InFlight(1)
    refuse(client, Reason.STEP_MISMATCH, 1, expected=2, digest=b"other")
    reply = finish_all(client.core)[1]
    answer = send(client, 1)
    assert isinstance(answer, Replayed)
    assert answer.reply is reply
    refuse(client, Reason.STEP_MISMATCH, 1, expected=2, digest=b"other")
    assert client.core.counters.steps_replayed == 1
    assert client.core.counters.steps_accepted == 1


def test_replies_are_kept_for_max_inflight_steps_and_two(client: Client) -> None:
    for number in range(1, 6):
        send(client, number)
        finish_all(client.core)
    refuse(client, Reason.STEP_STALE, 1, expected=6)
    assert isinstance(send(client, 2), Replayed)


def test_one_step_too_many_in_flight_is_refused(client: Client) -> None:
    send(client, 1)
    send(client, 2)
    error = refused(client.core, Reason.TOO_MANY_INFLIGHT_STEPS, None, lambda: send(client, 3))
    assert error.retry_delay_ms
    finish_all(client.core)
    send(client, 3)


def test_more_steps_in_flight_where_the_limit_says_so() -> None:
    client = Client(Core(FACTS, Limits(max_inflight_steps=5)))
    for number in range(1, 6):
        send(client, number)
    refused(client.core, Reason.TOO_MANY_INFLIGHT_STEPS, None, lambda: send(client, 6))
    assert sorted(finish_all(client.core)) == [1, 2, 3, 4, 5]
