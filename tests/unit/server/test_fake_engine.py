"""The fake engine: what it computes, what it reads, what it catches."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest

from mlxrt.core.model import ModelFacts
from mlxrt.core.sampling import GREEDY, Sampling
from mlxrt.core.step import (
    Entry,
    Registration,
    StepOutcome,
    StepPlan,
    TableUpdate,
    TokenSource,
)
from mlxrt.engine.base import EngineDescription
from mlxrt.errors import MlxrtError, Reason
from mlxrt.testing import FakeEngine
from mlxrt.testing.fake_sampling import sample_row, uniform

BLOCK = 4


class Driver:
    """A fake engine without a thread, and its outcomes."""

    def __init__(self, **options: object) -> None:
        self.engine = FakeEngine(num_blocks=256, block_size=BLOCK, **options)  # type: ignore[arg-type]
        self.outcomes: list[StepOutcome] = []
        self.ready: ModelFacts | None = None
        self.lost: MlxrtError | None = None
        self.engine.start(self)

    def on_progress(self, fraction: float, activity: str) -> None:
        pass

    def on_ready(self, facts: ModelFacts, description: EngineDescription) -> None:
        self.ready = facts

    def on_outcome(self, outcome: StepOutcome) -> None:
        self.outcomes.append(outcome)

    def on_lost(self, error: MlxrtError) -> None:
        self.lost = error

    def run(self, **fields: object) -> StepOutcome:
        """Runs one plan."""
        self.engine.submit(StepPlan(len(self.outcomes) + 1, **fields))  # type: ignore[arg-type]
        return self.outcomes[-1]

    def start(
        self, handle: int, prompt: Sequence[int], tables: Sequence[list[int]], **rules: object
    ) -> int:
        """Registers and prefills; answers the sampled token."""
        sampling = Sampling(**rules) if rules else GREEDY  # type: ignore[arg-type]
        outcome = self.run(
            registrations=[Registration(handle, prompt, sampling, 3)],
            table_updates=[TableUpdate(handle, g, 0, t, len(t)) for g, t in enumerate(tables)],
            entries=[Entry(handle, 0, len(prompt), TokenSource.REGISTERED, sample=True)],
        )
        token = outcome.entry_rows[0].token
        assert token is not None
        return token


@pytest.mark.parametrize("windows", [(0,), (0, 8), (8, 0, 3)])
def test_tokens_are_those_expected(windows: tuple[int, ...]) -> None:
    driver = Driver(windows=windows)
    rng = random.Random(7)
    free = [rng.sample(range(1, 256), 120) for _ in windows]
    known: dict[int, list[int]] = {}
    for handle in range(3):
        prompt = [rng.randrange(4096) for _ in range(rng.randrange(1, 20))]
        tables = [[blocks.pop() for _ in range(20)] for blocks in free]
        known[handle] = [*prompt, driver.start(handle, prompt, tables)]
        assert known[handle][-1] == driver.engine.expected_token(prompt)
    for _ in range(30):
        handles = rng.sample(range(3), rng.randrange(1, 4))
        starts = [len(known[h]) - 1 for h in handles]
        outcome = driver.run(decode_handles=handles, decode_starts=starts)
        for handle, token in zip(handles, outcome.decode_tokens, strict=True):
            assert token == driver.engine.expected_token(known[handle])
            known[handle].append(token)


def test_a_wrong_table_a_lost_copy_and_a_stranger_in_the_pool_change_the_token() -> None:
    prompt = list(range(100, 110))

    def second_token(spoil: StepPlan) -> int | None:
        driver = Driver()
        driver.start(1, prompt, [[5, 6, 7]])
        driver.start(2, [9] * 10, [[15, 16, 17]])
        spoil.ticket = 3
        driver.engine.submit(spoil)
        outcome = driver.run(decode_handles=[1], decode_starts=[10])
        failed = 0 in outcome.decode_details
        return None if failed else outcome.decode_tokens[0]

    right = second_token(StepPlan(0))
    first = Driver().start(1, prompt, [[5, 6, 7]])
    assert right == FakeEngine().expected_token([*prompt, first])
    stranger = StepPlan(0, table_updates=[TableUpdate(1, 0, 1, [16], 3)])
    copied = StepPlan(0, copies=[(0, 15, 5)])
    never_written = StepPlan(0, table_updates=[TableUpdate(1, 0, 0, [200], 3)])
    assert second_token(stranger) != right
    assert second_token(copied) != right
    assert second_token(never_written) is None


def test_what_lies_past_the_context_is_not_read() -> None:
    driver = Driver()
    # The second block is never written past position 5 and the third not at all: both hold NaN.
    first = driver.start(1, [1, 2, 3, 4, 5], [[5, 6, 7]])
    assert np.isnan(driver.engine.model.pools[0][6, 1:]).all()
    outcome = driver.run(decode_handles=[1], decode_starts=[5])
    expected = driver.engine.expected_token([1, 2, 3, 4, 5, first])
    assert list(outcome.decode_tokens) == [expected] and not outcome.decode_details


def test_copies_read_all_sources_first() -> None:
    driver = Driver()
    driver.start(1, [1, 2, 3, 4], [[5]])
    driver.start(2, [6, 7, 8, 9], [[6]])
    driver.run(copies=[(0, 5, 6), (0, 6, 5)])
    assert driver.engine.model.pools[0][5].tolist() == [6, 7, 8, 9]
    assert driver.engine.model.pools[0][6].tolist() == [1, 2, 3, 4]


def test_explicit_tokens_replace_what_was_known() -> None:
    driver = Driver()
    driver.start(1, [1, 2, 3, 4, 5], [[5, 6]])
    entry = Entry(1, 3, 2, TokenSource.EXPLICIT, [40, 50], sample=True, return_logits=True)
    (row,) = driver.run(entries=[entry]).entry_rows
    assert row.token == driver.engine.expected_token([1, 2, 3, 40, 50])
    assert row.logits is not None
    logits = np.frombuffer(row.logits, "<f4")
    assert logits.argmax() == row.token and logits.shape == (4096,)


def test_penalties_know_what_was_generated_of_a_sequence_that_comes_back() -> None:
    """Under its new handle the whole of it comes as a prompt, with how much of it is none."""
    driver = Driver(vocabulary_size=8)
    expected = driver.engine.expected_token
    prompt, generated = [0], next([g] for g in range(1, 8) if expected([0, g]) == g)
    tokens = prompt + generated
    for handle, count in ((1, 0), (2, 1)):
        rules = Sampling(frequency_penalty=2.0)
        outcome = driver.run(
            registrations=[Registration(handle, tokens, rules, 0, generated_count=count)],
            table_updates=[TableUpdate(handle, 0, 0, [handle], 1)],
            entries=[Entry(handle, 0, 2, TokenSource.REGISTERED, sample=True)],
        )
        assert (outcome.entry_rows[0].token == generated[0]) == (count == 0)


def test_penalties_count_given_tokens_as_generated_in_the_prompts_place_too() -> None:
    driver = Driver(vocabulary_size=8)
    expected = driver.engine.expected_token
    prompt, given = [0], next([g] for g in range(1, 8) if expected([0, g]) == g)
    driver.run(
        registrations=[Registration(1, [*prompt, 3, 3], Sampling(frequency_penalty=2.0), 0)],
        table_updates=[TableUpdate(1, 0, 0, [1], 1)],
        entries=[Entry(1, 0, 3, TokenSource.REGISTERED)],
    )
    entry = Entry(1, 1, 1, TokenSource.EXPLICIT, given, sample=True)
    (row,) = driver.run(entries=[entry]).entry_rows
    assert row.token != given[0]


def test_failures() -> None:
    driver = Driver()
    driver.engine.faults.fail_tickets.add(1)
    registration = Registration(1, [1, 2], GREEDY, 0)
    update = TableUpdate(1, 0, 0, [5], 1)
    entry = Entry(1, 0, 2, TokenSource.REGISTERED, sample=True)
    outcome = driver.run(registrations=[registration], table_updates=[update], entries=[entry])
    assert outcome.failure is not None and outcome.failure.reason is Reason.EXECUTION_FAILED
    assert np.isnan(driver.engine.model.pools[0]).all()
    # What was accepted stays true: the sequence runs in the next plan, without being told again.
    (row,) = driver.run(entries=[entry]).entry_rows
    assert row.token == driver.engine.expected_token([1, 2])
    outcome = driver.run(cancelled=True, retired=[1])
    assert outcome.failure is not None and outcome.failure.reason is Reason.PREDECESSOR_FAILED
    driver.engine.faults.lose_ticket = 4
    driver.run()
    driver.run()
    assert driver.lost is not None and len(driver.outcomes) == 3


def test_many_sequences_grow_the_tables_and_leave_room_when_retired() -> None:
    driver = Driver()
    for handle in range(200):
        assert driver.start(handle, [handle], [[handle + 1]]) == driver.engine.expected_token(
            [handle]
        )
    driver.run(retired=list(range(200)))
    for handle in range(200, 400):
        prompt = [handle]
        assert driver.start(handle, prompt, [[handle - 199]]) == driver.engine.expected_token(
            prompt
        )


def test_an_engine_without_a_thread_can_not_wait() -> None:
    with pytest.raises(ValueError, match="threaded"):
        FakeEngine(step_s=1)
    with pytest.raises(ValueError, match="threaded"):
        FakeEngine().hold()


def test_the_generator_is_the_contracts() -> None:
    """Values worked out from the formula in sampling.proto with 64-bit integers, step by step."""

    def mix(z: int) -> int:
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        return z ^ (z >> 31)

    for seed, position in ((0, 0), (1, 5), (2**64 - 1, 4095)):
        inner = (mix(seed) + (position + 1) * 0x9E3779B97F4A7C15) % 2**64
        assert uniform(seed, position) == (mix(inner) >> 40) / 2**24
    draws = [uniform(9, p) for p in range(4000)]
    assert min(draws) >= 0 and max(draws) < 1 and abs(np.mean(draws) - 0.5) < 0.02


def test_the_rules_of_sampling() -> None:
    logits = np.array([0.0, 2.0, 2.0, 1.0, -3.0], np.float32)

    def token(**rules: object) -> int | None:
        return sample_row(logits, Sampling(**rules), 1, [2], [1, 1]).token  # type: ignore[arg-type]

    assert token() == 1
    assert token(logit_bias=((4, 6.0),)) == 4
    assert token(repetition_penalty=4.0) == 3
    assert token(frequency_penalty=1.0) == 2 and token(presence_penalty=2.0) == 2
    drawn = {
        sample_row(logits, Sampling(temperature=1.0, top_k=1), seed, [0], []).token
        for seed in range(60)
    }
    assert drawn == {1, 2}
    row = sample_row(logits, Sampling(top_logprobs=2), 1, [0], [])
    assert [i for i, _ in row.top] == [1, 2] and row.rank == 1
    assert row.logprob == pytest.approx(2 - np.log(np.exp(logits).sum()), abs=1e-6)
    row = sample_row(
        logits,
        Sampling(temperature=0.5, min_p=0.5, top_logprobs=5, processed_logprobs=True),
        1, [0], [],
    )  # fmt: skip
    assert [p for _, p in row.top] == pytest.approx([np.log(0.5)] * 2 + [-np.inf] * 3)
