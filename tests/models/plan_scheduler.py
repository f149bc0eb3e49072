"""A scheduler that drives an engine by hand-made plans, for the tests in this folder."""

from __future__ import annotations

import random
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

from mlxrt.core.sampling import GREEDY
from mlxrt.core.step import Entry, Registration, StepOutcome, StepPlan, TableUpdate, TokenSource


@dataclass
class Sequence:
    """What the scheduler knows of one sequence: tokens read, tokens known to exist, positions
    computed, blocks.
    """

    handle: int
    prompt: list[int]
    goal: int
    tokens: list[int] = field(default_factory=list)
    known: int = 0
    position: int = 0
    tables: list[list[int]] = field(default_factory=list)
    registered: bool = False
    table_sent: int = 0
    logits: dict[int, bytes] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        return self.known >= len(self.prompt) + self.goal


Rows = tuple[Sequence, bool, int]
"""A sequence's part in a step: the sequence, whether it samples, and its length after the rows."""


class Scheduler:
    """A small deterministic scheduler that makes plans: chunked and mixed prefill, decode,
    scattered and recycled blocks, preemption and resumption, prefix sharing with copies, and two
    steps in flight. With `leave` it gives back the blocks that left a window.
    """

    def __init__(
        self, running: Any, seed: int, in_flight: int = 2, *, leave: bool = False
    ) -> None:
        self.running = running
        self.random = random.Random(seed)
        self.block_size = running.facts.block_size
        self.groups = running.facts.groups
        self.leave = leave
        self.free = [list(range(1, group.block_count)) for group in self.groups]
        for free in self.free:
            self.random.shuffle(free)
        self.owners: dict[tuple[int, int], int] = {}
        self.used_max = [0] * len(self.groups)
        self.in_flight = in_flight
        self.waiting: deque[list[Rows]] = deque()
        self.ticket = 0
        self.sequences: list[Sequence] = []
        self.plan = StepPlan(0)
        self.seen: Counter[str] = Counter()

    def add(self, prompt: list[int], goal: int) -> Sequence:
        """A sequence that starts with the next step."""
        sequence = Sequence(len(self.sequences) + 1, prompt, goal, list(prompt), len(prompt))
        sequence.tables = [[] for _ in self.groups]
        self.sequences.append(sequence)
        return sequence

    def share(self, source: Sequence, length: int, rest: list[int], goal: int) -> Sequence:
        """A sequence that begins with `length` computed tokens of the source's prompt: whole blocks
        shared, the rest copied.
        """
        assert length <= min(source.position, len(source.prompt))
        sequence = self.add(source.prompt[:length] + rest, goal)
        whole = length // self.block_size
        for group, table in enumerate(source.tables):
            sequence.tables[group] = table[:whole]
            for block in table[:whole]:
                self.owners[group, block] += 1
            if length % self.block_size:
                copy = self._allocate(group)
                self.plan.copies.append((group, table[whole], copy))
                sequence.tables[group].append(copy)
        sequence.position = length
        self.seen["shared"] += 1
        return sequence

    def preempt(self, sequence: Sequence) -> None:
        """Takes the blocks away; the next step of the sequence starts anew from the tokens that the
        engine keeps.
        """
        self._release(sequence)
        sequence.position, sequence.table_sent = 0, 0
        for group in range(len(self.groups)):
            self.plan.table_updates.append(TableUpdate(sequence.handle, group, 0, [], 0))
        self.seen["preempted"] += 1

    def drive(self, seed: int, *, steps_min: int, active_max: int = 4) -> int:
        """Keeps up to `active_max` sequences going for `steps_min` steps, then until all have
        reached their goals: chunks, decodes, shared prefixes, preemptions; answers the steps.
        """
        rng = random.Random(seed)
        active: list[Sequence] = []
        steps = 0
        while steps < steps_min or active:
            if steps < steps_min and len(active) < active_max:
                active.append(self._newcomer(active, rng))
            chosen = [s for s in active if rng.random() < 0.9]
            rng.shuffle(chosen)
            if not chosen:
                continue
            self.step(chosen, chunk=rng.choice((1, 3, 7)), logits=rng.random() < 0.1)
            steps += 1
            for sequence in [s for s in active if s.finished]:
                active.remove(sequence)
                self.retire(sequence)
            if active and rng.random() < 0.05:
                self.preempt(rng.choice(active))
        self.drain()
        return steps

    def finish(self, chunk: int = 8) -> int:
        """Steps every sequence to its goal, all at once; returns the number of steps."""
        steps = 0
        while pending := [s for s in self.sequences if not s.finished]:
            self.step(pending, chunk=chunk)
            steps += 1
        self.drain()
        return steps

    def drain(self) -> None:
        """Reads what is in flight."""
        while self.waiting:
            self.read()

    def _newcomer(self, active: list[Sequence], rng: random.Random) -> Sequence:
        """A new sequence; now and then one that begins as another did."""

        def prompt(low: int, high: int) -> list[int]:
            vocabulary_size = self.running.facts.vocabulary_size
            return [rng.randrange(vocabulary_size) for _ in range(rng.randint(low, high))]

        sources = [s for s in active if min(s.position, len(s.prompt)) >= 3]
        if sources and not self.leave and rng.random() < 0.4:
            source = rng.choice(sources)
            length = rng.randint(2, min(source.position, len(source.prompt)) - 1)
            return self.share(source, length, prompt(1, 9), rng.randint(10, 30))
        return self.add(prompt(1, 30), rng.randint(10, 50))

    def step(self, chosen: list[Sequence], chunk: int, logits: bool = False) -> None:
        """Submits one step in which each chosen sequence computes up to `chunk` rows; reads
        outcomes as needed.
        """
        plan = self.plan
        rows: list[Rows] = []
        entries: list[Rows] = []
        for sequence in chosen:
            start, count = sequence.position, min(chunk, sequence.known - sequence.position)
            sample = start + count == sequence.known
            self._register(sequence, start + count)
            if count == 1 and sample and start >= len(sequence.prompt) and not logits:
                plan.decode_handles.append(sequence.handle)
                plan.decode_starts.append(start)
                rows.append((sequence, True, start + count))
                self.seen["decode"] += 1
            else:
                plan.entries.append(
                    Entry(sequence.handle, start, count, TokenSource.REGISTERED, (), sample, logits)
                )
                entries.append((sequence, sample, start + count))
                self.seen["chunk"] += count > 1
            sequence.position += count
            sequence.known += sample
        self.seen["mixed"] += bool(rows and entries)
        self.submit(rows + entries)

    def submit(self, rows: list[Rows]) -> None:
        """Hands the plan over, then reads until there is room for one more."""
        self.ticket += 1
        self.plan.ticket = self.ticket
        self.running.submit(self.plan)
        self.plan = StepPlan(0)
        self.waiting.append(rows)
        while len(self.waiting) >= self.in_flight:
            self.read()

    def read(self) -> StepOutcome:
        """Reads the oldest outcome."""
        rows = self.waiting.popleft()
        outcome = self.running.outcome()
        assert outcome.failure is None, outcome.failure
        decoded = list(outcome.decode_tokens)
        assert not outcome.decode_details
        for index, (sequence, sample, length) in enumerate(rows):
            if index < len(decoded):
                sequence.tokens.append(decoded[index])
                continue
            row = outcome.entry_rows[index - len(decoded)]
            assert row.failure is None
            if row.logits is not None:
                sequence.logits[length] = row.logits
            if sample:
                assert row.token is not None
                sequence.tokens.append(row.token)
        return outcome

    def retire(self, sequence: Sequence) -> None:
        """Frees everything of a sequence with the next plan."""
        self._release(sequence)
        self.plan.retired.append(sequence.handle)

    def _register(self, sequence: Sequence, length: int) -> None:
        if not sequence.registered:
            sequence.registered = True
            self.plan.registrations.append(
                Registration(sequence.handle, sequence.prompt, GREEDY, 0)
            )
        first = sequence.table_sent
        for group, table in enumerate(sequence.tables):
            if self.leave:
                self._leave_window(sequence, group)
            while len(table) * self.block_size < length:
                table.append(self._allocate(group))
            if first < len(table):
                self.plan.table_updates.append(
                    TableUpdate(sequence.handle, group, first, table[first:], len(table))
                )
        sequence.table_sent = len(sequence.tables[0])

    def _leave_window(self, sequence: Sequence, group: int) -> None:
        """Makes holes of the blocks that no row from `position` on sees; they are free at once."""
        window, table = self.groups[group].window, sequence.tables[group]
        if not window:
            return
        count = max(0, sequence.position + 1 - window) // self.block_size
        first = table[:count].count(0)
        if first < count:
            for block in table[first:count]:
                self._let_go(group, block)
            table[first:count] = [0] * (count - first)
            self.plan.table_updates.append(
                TableUpdate(sequence.handle, group, first, [0] * (count - first), len(table))
            )
            self.seen["left"] += count - first

    def _allocate(self, group: int) -> int:
        block = self.free[group].pop()
        self.owners[group, block] = 1
        used = self.groups[group].block_count - 1 - len(self.free[group])
        self.used_max[group] = max(self.used_max[group], used)
        return block

    def _release(self, sequence: Sequence) -> None:
        for group, table in enumerate(sequence.tables):
            for block in filter(None, table):
                self._let_go(group, block)
        sequence.tables = [[] for _ in self.groups]

    def _let_go(self, group: int, block: int) -> None:
        self.owners[group, block] -= 1
        if not self.owners[group, block]:
            free = self.free[group]
            free.insert(self.random.randrange(len(free) + 1), block)
            self.seen["recycled"] += 1
