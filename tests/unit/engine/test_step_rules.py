"""The rules of a step's rows: gathered from dense arrays where they are rules 3 to 7 alone, and
then the same, to the bit, as row by row.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest

from mlxrt.core.sampling import GREEDY, Sampling
from mlxrt.core.step import Entry, Registration, StepPlan, TokenSource
from mlxrt.engine.batch import apply_changes, build_batch
from mlxrt.engine.mirrors import SequenceMirrors
from mlxrt.engine.sampling import SamplingBatch, SamplingRow, is_plain_greedy
from mlxrt.engine.sampling.native import NativeSampler
from mlxrt.engine.step_rules import step_rules

VOCABULARY = 96
DRAWN = [
    Sampling(temperature=0.7, top_p=0.9),
    Sampling(temperature=1e-45, top_k=VOCABULARY - 1),
    Sampling(temperature=1.0, top_k=VOCABULARY),
    Sampling(temperature=1.3, top_k=5, top_p=0.3, min_p=0.25),
    Sampling(temperature=3e38, min_p=1.0, processed_logprobs=True),
]
PLAIN = [GREEDY, Sampling(top_k=3, top_p=0.5, min_p=0.1)]
MORE = [
    Sampling(logit_bias=((5, 1.0),)),
    Sampling(temperature=0.7, repetition_penalty=1.2),
    Sampling(temperature=0.7, presence_penalty=0.5),
    Sampling(frequency_penalty=0.5),
    Sampling(temperature=0.7, top_logprobs=0),
    Sampling(top_logprobs=2),
]


@dataclass
class Known:
    """What the test knows of a sequence."""

    rules: Sampling
    seed: int
    length: int


@dataclass
class Expected:
    """The selected rows of a plan, from the plan alone."""

    rows: list[SamplingRow | None]
    gathered: bool


class World:
    """Sequences that come and go, in the mirrors and in the test's own book."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.mirrors = SequenceMirrors(group_count=1, vocabulary_size=VOCABULARY)
        self.known: dict[int, Known] = {}
        self._ticket = self._handle = 0

    def change(self, retired: int, registered: int, choices: list[Sampling]) -> None:
        """Retires and registers so many sequences; lines of the former serve the latter."""
        self._ticket += 1
        gone = self.rng.permutation(list(self.known))[:retired].tolist()
        plan = StepPlan(self._ticket, retired=gone)
        for handle in gone:
            del self.known[handle]
        for _ in range(registered):
            self._handle += 1
            rules = choices[self.rng.integers(len(choices))]
            seed = int(self.rng.integers(2**64 - 1, dtype=np.uint64, endpoint=True))
            known = self.known[self._handle] = Known(rules, seed, int(self.rng.integers(1, 40)))
            tokens = [7] * known.length
            plan.registrations.append(Registration(self._handle, tokens, rules, seed))
        apply_changes(plan, self.mirrors)

    def plan(self, with_entries: bool) -> tuple[StepPlan, Expected]:
        """Decode rows, chunks that sample or don't, logits, drafts: of the sequences, some."""
        self._ticket += 1
        plan, expected = StepPlan(self._ticket), Expected([], True)
        handles = self.rng.permutation(list(self.known)).tolist()[: self.rng.integers(1, 100)]
        decoding = self.rng.integers(1, len(handles) + 1) if with_entries else len(handles)
        for handle in handles[:decoding]:
            plan.decode_handles.append(handle)
            plan.decode_starts.append(self.known[handle].length - 1)
            self._expect(expected, handle, [self.known[handle].length], sample=True)
        for handle in handles[decoding:]:
            self._add_entry(plan, expected, handle)
        return plan, expected

    def _add_entry(self, plan: StepPlan, expected: Expected, handle: int) -> None:
        known = self.known[handle]
        start = int(self.rng.integers(known.length))
        sample, return_logits = (bool(flag) for flag in self.rng.integers(2, size=2))
        drafts = [3] * int(sample and self.rng.integers(4))
        count = known.length - start
        source = TokenSource.REGISTERED
        plan.entries.append(Entry(handle, start, count, source, (), sample, return_logits, drafts))
        if sample or return_logits:
            positions = [known.length + behind for behind in range(len(drafts) + 1)]
            self._expect(expected, handle, positions, sample)

    def _expect(self, expected: Expected, handle: int, positions: list[int], sample: bool) -> None:
        known = self.known[handle]
        asks = sample and not is_plain_greedy(known.rules)
        for position in positions:
            row = SamplingRow(known.rules, known.seed, position) if asks else None
            expected.rows.append(row)
        expected.gathered &= not (sample and known.rules in MORE)


def _check_gathered(found: SamplingBatch, rows: list[SamplingRow | None]) -> None:
    built = SamplingBatch.build(rows, VOCABULARY)
    assert found.count == len(rows)
    assert found.is_greedy == built.is_greedy
    if built.draws is None:
        assert found.is_greedy
        return
    assert found.is_drawn_alone and built.is_drawn_alone and found.draws is not None
    assert (found.draws.rows.dtype, found.draws.table.dtype) == (np.int32, np.float32)
    assert found.draws.rows.tolist() == built.draws.rows.tolist()
    assert found.draws.table.tobytes() == built.draws.table.tobytes()
    tables = [NativeSampler().table(batch) for batch in (found, built)]
    assert tables[0].tobytes() == tables[1].tobytes()
    assert tables[0].shape == (len(rows), 5)


@pytest.mark.parametrize("seed", range(8))
def test_gathered_rules_are_those_of_the_rows(seed: int) -> None:
    """Half of the worlds have few sequences that ask for more, and so steps of both kinds."""
    world = World(seed)
    choices = PLAIN + DRAWN * 8 + MORE[: seed % 2]
    ways: Counter[str] = Counter()
    world.change(0, 70, choices)
    for index in range(60):
        plan, expected = world.plan(with_entries=index % 3 > 0)
        batch = build_batch(plan, world.mirrors, 16, (), parity=index % 2)
        before = world.mirrors.draws.gathered
        assert batch is not None
        found = step_rules(batch, world.mirrors, {})
        if not expected.rows:
            assert found is None
            continue
        assert found is not None
        assert world.mirrors.draws.gathered - before == expected.gathered
        ways["gathered" if expected.gathered else "built"] += 1
        ways["drafts"] += any(entry.draft_tokens for entry in plan.entries)
        ways["silent"] += any(not entry.sample for entry in plan.entries)
        if expected.gathered:
            _check_gathered(found, expected.rows)
        else:
            assert not found.is_drawn_alone and not found.is_greedy
        count = int(world.rng.integers(20))
        world.change(count, count + index % 2, choices)
    assert ways["gathered"] > 5 and ways["drafts"] > 20 and ways["silent"] > 20
    assert (ways["built"] > 5) == bool(seed % 2)


@pytest.mark.parametrize("more", MORE)
def test_one_row_that_asks_for_more_is_built_with_all_others(more: Sampling) -> None:
    world = World(0)
    world.change(0, 3, DRAWN)
    world.change(0, 1, [more])
    for handles, gathered in (([1, 2, 3], True), ([1, 2, 3, 4], False), ([4], False)):
        lengths = [world.known[handle].length for handle in handles]
        plan = StepPlan(9, decode_handles=handles, decode_starts=[n - 1 for n in lengths])
        batch = build_batch(plan, world.mirrors, 16, (), parity=0)
        before = world.mirrors.draws.gathered
        assert batch is not None
        found = step_rules(batch, world.mirrors, {})
        assert found is not None and found.is_drawn_alone == gathered
        assert world.mirrors.draws.gathered - before == gathered
        drawn = [k for k, h in enumerate(handles) if world.known[h].rules.temperature > 0]
        assert ([] if found.draws is None else found.draws.rows.tolist()) == drawn


def test_a_line_keeps_nothing_of_the_sequence_before() -> None:
    """Drawn, more, plain greedy, drawn again: on one line."""
    world = World(1)
    lines = set()
    for rules in ([DRAWN[0]], [MORE[1]], [PLAIN[0]], [DRAWN[3]], [MORE[0]], [PLAIN[1]]):
        world.change(1, 1, rules)
        ((handle, known),) = world.known.items()
        lines.add(int(world.mirrors.lines_of([handle])[0]))
        plan = StepPlan(9, decode_handles=[handle], decode_starts=[known.length - 1])
        batch = build_batch(plan, world.mirrors, 16, (), parity=0)
        assert batch is not None
        found = step_rules(batch, world.mirrors, {})
        assert found is not None
        assert found.is_greedy == (rules[0] in PLAIN)
        if rules[0] in DRAWN:
            _check_gathered(found, [SamplingRow(known.rules, known.seed, known.length)])
    assert len(lines) == 1
    world.change(1, 1, [DRAWN[0]])
    world.change(1, 0, [])
    one = np.zeros(1, np.int64)
    left = world.mirrors.draws.gather(np.array([*lines]), one, [0])
    assert left is not None and left.is_greedy


def test_a_mask_is_applied_to_a_row_whose_rules_could_be_gathered() -> None:
    world = World(2)
    world.change(0, 2, DRAWN)
    lengths = [known.length for known in world.known.values()]
    plan = StepPlan(9, decode_handles=[1, 2], decode_starts=[n - 1 for n in lengths])
    batch = build_batch(plan, world.mirrors, 16, (), parity=0)
    assert batch is not None
    found = step_rules(batch, world.mirrors, {2: np.array([1, 0, 2], "<u4").tobytes()})
    assert found is not None and found.masks is not None and world.mirrors.draws.gathered == 0
    assert found.masks.rows.tolist() == [1] and found.masks.words.tolist() == [[1, 0, 2]]
    assert found.draws is not None and found.draws.rows.tolist() == [0, 1]
