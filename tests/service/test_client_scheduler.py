"""The reference scheduler against the fake model, whose tokens depend on every slot read."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
from mlxrt_client import Client, Scheduler, Token, v1
from mlxrt_client.errors import StepDiscardedError

from mlxrt.core.step import StepOutcome, StepPlan
from mlxrt.engine.base import EngineListener
from mlxrt.testing import FakeEngine, FakeFaults
from mlxrt.testing.server_thread import ServerThread

VOCABULARY = 4096


class WatchedEngine(FakeEngine):
    """A fake engine that counts the plans that are submitted and have no outcome."""

    outstanding = outstanding_max = 0

    def start(self, listener: EngineListener) -> None:
        self.lock = threading.Lock()
        super().start(Watch(self, listener))

    def submit(self, plan: StepPlan) -> None:
        self.count(1)
        super().submit(plan)

    def count(self, change: int) -> None:
        """Adds to the number of plans without an outcome."""
        with self.lock:
            self.outstanding += change
            self.outstanding_max = max(self.outstanding_max, self.outstanding)


class Watch:
    """Passes a listener's calls on and counts the outcomes before they are heard."""

    def __init__(self, engine: WatchedEngine, listener: EngineListener) -> None:
        self.on_progress, self.on_ready = listener.on_progress, listener.on_ready
        self.on_lost = listener.on_lost
        self._engine, self._listener = engine, listener

    def on_outcome(self, outcome: StepOutcome) -> None:
        """A plan has ended."""
        self._engine.count(-1)
        self._listener.on_outcome(outcome)


def prompts_of(count: int, longest: int, seed: int) -> list[list[int]]:
    """Returns `count` random prompts of 1 to `longest` tokens."""
    source = random.Random(seed)
    return [
        [source.randrange(VOCABULARY) for _ in range(source.randint(1, longest))]
        for _ in range(count)
    ]


def continuation(engine: FakeEngine, prompt: Sequence[int], count: int) -> list[int]:
    """Returns the `count` greedy tokens after `prompt`."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(engine.expected_token(tokens))
    return tokens[len(prompt) :]


def collect(scheduler: Scheduler) -> dict[int, list[Token]]:
    """Runs a scheduler to its end; tokens by sequence."""
    found: dict[int, list[Token]] = {}
    for token in scheduler.run():
        found.setdefault(token.sequence_id, []).append(token)
    return found


def ids(tokens: Sequence[Token]) -> list[int | None]:
    """Returns the token ids."""
    return [token.token_id for token in tokens]


@contextmanager
def scheduling(client: Client, **options: int) -> Iterator[Scheduler]:
    """Opens a session and makes a scheduler on it."""
    limits = client.server_info().limits
    with client.open_session() as session:
        yield Scheduler(session, client.model_info(), limits, **options)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("windows", [(0,), (0, 8)], ids=["full", "full-and-window"])
def test_every_token_is_right_under_preemption_and_chunked_prefill(
    seed: int, windows: tuple[int, ...]
) -> None:
    engine = FakeEngine(block_size=4, num_blocks=24, windows=windows)
    prompts = prompts_of(16, 40, seed)
    with (
        ServerThread(engine) as server,
        Client(server.address) as client,
        scheduling(client, step_rows_max=24) as scheduler,
    ):
        wanted = {scheduler.add(p, 20): continuation(engine, p, 20) for p in prompts}
        found = collect(scheduler)
        assert {i: ids(tokens) for i, tokens in found.items()} == wanted
        assert {tokens[-1].finish for tokens in found.values()} == {"length"}
        done = scheduler.statistics
        assert done.preemption_count > 0
        assert done.mixed_step_count > 0
        assert done.inflight_steps_max == 2
        assert done.token_count == 16 * 20
        # What a preempted sequence computes again comes on top.
        assert done.row_count > sum(len(p) + 19 for p in prompts)
        assert engine.plans_run == done.step_count
        scheduler.close()
        with client.open_session() as other:
            assert other.allocate_blocks({g: 23 for g in range(len(windows))})


def test_the_engine_has_two_steps_at_once() -> None:
    engine = WatchedEngine(threaded=True, step_s=0.005)
    with (
        ServerThread(engine) as server,
        Client(server.address) as client,
        scheduling(client) as scheduler,
    ):
        wanted = {scheduler.add(p, 12): continuation(engine, p, 12) for p in prompts_of(4, 8, 1)}
        assert {i: ids(tokens) for i, tokens in collect(scheduler).items()} == wanted
    assert engine.outstanding_max == 2


def test_a_single_step_in_flight_gives_the_same_tokens() -> None:
    engine = FakeEngine(block_size=4, num_blocks=24)
    with (
        ServerThread(engine) as server,
        Client(server.address) as client,
        scheduling(client, inflight_steps=1, step_rows_max=8) as scheduler,
    ):
        wanted = {scheduler.add(p, 9): continuation(engine, p, 9) for p in prompts_of(8, 20, 5)}
        assert {i: ids(tokens) for i, tokens in collect(scheduler).items()} == wanted
        assert scheduler.statistics.inflight_steps_max == 1


def test_a_stop_token_ends_its_sequence_and_no_other() -> None:
    engine = FakeEngine()
    prompt, other = prompts_of(2, 9, 7)
    tokens = continuation(engine, prompt, 12)
    with (
        ServerThread(engine) as server,
        Client(server.address) as client,
        scheduling(client) as scheduler,
    ):
        first = scheduler.add(prompt, 12, stop_token_ids=[tokens[4]])
        second = scheduler.add(other, 12)
        found = collect(scheduler)
    assert ids(found[first]) == tokens[:5]
    assert found[first][-1].finish == "stop"
    assert [token.finish for token in found[first][:-1]] == [None] * 4
    assert ids(found[second]) == continuation(engine, other, 12)


def test_a_sequence_that_fails_alone_leaves_its_mates_unharmed() -> None:
    poison = 77
    engine = FakeEngine(faults=FakeFaults(nan_prompt_tokens={poison}))
    with (
        ServerThread(engine) as server,
        Client(server.address) as client,
        scheduling(client) as scheduler,
    ):
        bad = scheduler.add([5, poison, 6], 6)
        good = [[1, 2, 3], [4, 5]]
        wanted = {scheduler.add(p, 6): continuation(engine, p, 6) for p in good}
        found = collect(scheduler)
        [token] = found.pop(bad)
        assert token.finish == "error" and token.error is not None
        assert token.error.reason == "NON_FINITE_LOGITS"
        assert {i: ids(tokens) for i, tokens in found.items()} == wanted
        scheduler.close()


@pytest.mark.parametrize("failing", [{1}, {6}, {6, 9, 20}, {5, 6, 7}])
def test_discarded_steps_are_scheduled_anew(failing: set[int]) -> None:
    engine = FakeEngine(
        block_size=4, num_blocks=24, threaded=True, faults=FakeFaults(fail_tickets=failing)
    )
    prompts = prompts_of(10, 30, 3)
    with (
        ServerThread(engine) as server,
        Client(server.address) as client,
        scheduling(client, step_rows_max=16) as scheduler,
    ):
        wanted = {scheduler.add(p, 12): continuation(engine, p, 12) for p in prompts}
        assert {i: ids(tokens) for i, tokens in collect(scheduler).items()} == wanted
        assert scheduler.statistics.discard_count > 0
        scheduler.close()


def test_a_device_that_fails_every_step_is_given_up() -> None:
    engine = FakeEngine(threaded=True, faults=FakeFaults(fail_tickets=set(range(4, 100))))
    with (
        ServerThread(engine) as server,
        Client(server.address) as client,
        scheduling(client) as scheduler,
    ):
        scheduler.add([1, 2, 3], 20)
        with pytest.raises(StepDiscardedError) as caught:
            collect(scheduler)
        assert caught.value.accepted and caught.value.reason == "EXECUTION_FAILED"
        assert engine.plans_run < 20


def test_a_run_that_was_left_goes_on_with_the_tokens_that_were_missed() -> None:
    engine = FakeEngine(block_size=4, num_blocks=24)
    prompts = prompts_of(8, 24, 6)
    with (
        ServerThread(engine) as server,
        Client(server.address) as client,
        scheduling(client, step_rows_max=16) as scheduler,
    ):
        wanted = {scheduler.add(p, 12): continuation(engine, p, 12) for p in prompts}
        found: dict[int, list[int | None]] = {i: [] for i in wanted}
        rounds = 0
        while any(len(found[i]) < 12 for i in wanted):
            rounds += 1
            for count, token in enumerate(scheduler.run()):
                found[token.sequence_id].append(token.token_id)
                if count == 10:
                    break
        assert found == wanted
        assert rounds > 5
        scheduler.close()


def test_prompts_may_be_added_while_it_runs() -> None:
    engine = FakeEngine()
    late = [9, 8, 7]
    with (
        ServerThread(engine) as server,
        Client(server.address) as client,
        scheduling(client) as scheduler,
    ):
        first = scheduler.add([1, 2], 6)
        found: dict[int, list[int | None]] = {}
        late_id = 0
        for token in scheduler.run():
            if not late_id:
                late_id = scheduler.add(late, 6)
            found.setdefault(token.sequence_id, []).append(token.token_id)
    assert found == {
        first: continuation(engine, [1, 2], 6),
        late_id: continuation(engine, late, 6),
    }


def test_many_more_prompts_than_a_session_may_register() -> None:
    engine = FakeEngine()
    with (
        ServerThread(engine, limits={"max_sequences": 5, "max_step_sequences": 3}) as server,
        Client(server.address) as client,
        scheduling(client) as scheduler,
    ):
        wanted = {scheduler.add(p, 3): continuation(engine, p, 3) for p in prompts_of(20, 9, 2)}
        assert {i: ids(tokens) for i, tokens in collect(scheduler).items()} == wanted


def test_a_seeded_draw_survives_preemption() -> None:
    engine = FakeEngine(block_size=4, num_blocks=14)
    sampling = v1.SamplingParams(temperature=20.0, seed=11)
    prompts = prompts_of(5, 12, 8)
    found = []
    with ServerThread(engine) as server, Client(server.address) as client:
        for alone in (True, False):
            with scheduling(client) as scheduler:
                tokens: dict[int, list[Token]] = {}
                for prompt in prompts:
                    scheduler.add(prompt, 14, sampling=sampling)
                    if alone:
                        tokens |= collect(scheduler)
                tokens |= collect(scheduler)
                assert (scheduler.statistics.preemption_count == 0) == alone
                found.append({i: ids(row) for i, row in tokens.items()})
    assert found[0] == found[1]
    greedy = {i + 1: continuation(engine, p, 14) for i, p in enumerate(prompts)}
    assert found[0] != greedy


@pytest.mark.parametrize(
    ("prompt", "tokens_max"), [([], 1), ([1], 0), ([1] * 80, 20), ([1] * 5000, 1)]
)
def test_what_can_never_fit_is_refused_at_once(prompt: list[int], tokens_max: int) -> None:
    engine = FakeEngine(block_size=4, num_blocks=24)
    with (
        ServerThread(engine) as server,
        Client(server.address) as client,
        scheduling(client) as scheduler,
        pytest.raises(ValueError),
    ):
        scheduler.add(prompt, tokens_max)
