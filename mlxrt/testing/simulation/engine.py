"""The fake model as an engine whose plans run, fail and come back when the run says so."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from random import Random

import numpy as np

from mlxrt.core.model import ModelFacts
from mlxrt.core.step import Phase, SampledRow, StepOutcome, StepPlan
from mlxrt.engine.base import EngineDescription, EngineListener
from mlxrt.errors import MlxrtError, Reason
from mlxrt.testing.fake_engine import FakeEngine
from mlxrt.testing.fake_model import FakeModel
from mlxrt.testing.fake_runner import FakeRunner
from mlxrt.testing.simulation.clock import EventQueue
from mlxrt.testing.simulation.witness import WitnessCore


@dataclass(slots=True)
class EngineFaults:
    """Chances per plan: the forward fails, a row is not finite, the device is lost; and how long a
    step takes, microseconds."""

    fail: float = 0.0
    poison: float = 0.0
    lose: float = 0.0
    step_us: tuple[int, int] = (500, 5_000)


class _Runner(FakeRunner):
    """FakeRunner whose slots can be named and spoilt."""

    def blocks(self, handle: int, end: int) -> set[tuple[int, int]]:
        """Blocks of the first `end` positions, as `(group, id)`; holes left out."""
        line, count = self._line[handle], -(-end // self._model.block_size)
        return {
            (group, block_id)
            for group, table in enumerate(self._tables)
            for block_id in table[line, :count].tolist()
            if block_id
        }

    def spoil(self, handle: int, start: int, end: int) -> None:
        """Makes positions `start` to `end - 1` NaN."""
        line = self._line[handle]
        indexes, offsets = np.divmod(np.arange(start, end), self._model.block_size)
        for group, table in enumerate(self._tables):
            self._model.pools[group][table[line, indexes], offsets] = np.nan


class SimulatedEngine:
    """Engine over the fake model and the run's clock.

    Attributes:
        model, facts: of the fake.
        core: set once there is one; hears what runs.
        alive: a dead engine does nothing more.
        plans_run, plans_failed, rows_poisoned: counts.
        samplings_run: of plans that sample what an earlier one forwarded.
    """

    depth = 2

    def __init__(
        self, template: FakeEngine, queue: EventQueue, random: Random, faults: EngineFaults
    ) -> None:
        """A fresh pool of the size of `template`, which is only looked at."""
        self.facts: ModelFacts = template.facts
        old = template.model
        self.model = FakeModel(
            old.vocabulary_size,
            old.max_model_length,
            old.block_size,
            len(old.pools[0]),
            old.windows,
        )
        self.core: WitnessCore | None = None
        self.alive = True
        self.plans_run = self.samplings_run = self.plans_failed = self.rows_poisoned = 0
        self._forwards: dict[int, StepPlan] = {}
        self._runner = _Runner(self.model, set())
        self._clock = queue
        self._random = random
        self.faults = faults
        self._waiting: deque[StepPlan] = deque()
        self._listener: EngineListener | None = None
        self._delivered_us = 0

    def start(self, listener: EngineListener) -> None:
        """As Engine.start; ready at once."""
        self._listener = listener
        listener.on_ready(self.facts, EngineDescription("fake", "fake", "", ""))

    def submit(self, plan: StepPlan) -> None:
        """As Engine.submit; never answers inside."""
        self._waiting.append(plan)
        if len(self._waiting) == 1:
            self._clock.after(self._duration_us(), self._run)

    def heartbeat_age_s(self) -> float:
        """As Engine.heartbeat_age_s."""
        return 0.0

    def close(self) -> None:
        """As Engine.close."""
        self.alive = False

    def _duration_us(self) -> int:
        return self._random.randint(*self.faults.step_us)

    def _run(self) -> None:
        if not self.alive:
            return
        assert self._listener is not None
        plan = self._waiting.popleft()
        if self._random.random() < self.faults.lose:
            self.alive = False
            self._listener.on_lost(MlxrtError(Reason.DEVICE_LOST, "the simulated device is lost"))
            return
        outcome = self._outcome(plan)
        # The next plan may run before this outcome arrives.
        due_us = self._clock.now_us + self._random.randint(1, 500)
        self._delivered_us = max(self._delivered_us + 1, due_us)
        self._clock.after(self._delivered_us - self._clock.now_us, self._deliver, outcome)
        if self._waiting:
            self._clock.after(self._duration_us(), self._run)

    def _deliver(self, outcome: StepOutcome) -> None:
        if self.alive and self._listener is not None:
            self._listener.on_outcome(outcome)

    def _outcome(self, plan: StepPlan) -> StepOutcome:
        assert self.core is not None
        if plan.cancelled or plan.phase is Phase.SAMPLING:
            return self._sampled(plan)
        fails = self._random.random() < self.faults.fail
        # A forward that fails may have written nothing, all of it, or anything.
        damage = self._random.randrange(3) if fails else 0
        outcome = self._runner.run(plan, fails and damage == 0)
        self.plans_run += 1
        self.core.will_run(plan.ticket, self._touched(plan))
        if fails:
            self.plans_failed += 1
            self.core.failed_plans.add(plan.ticket)
            if damage == 2:
                self._spoil(plan)
            failure = MlxrtError(Reason.EXECUTION_FAILED, "the simulated forward failed")
            return StepOutcome(plan.ticket, failure=failure)
        if plan.phase is Phase.FORWARD:
            self._forwards[plan.ticket] = plan
        elif self._random.random() < self.faults.poison:
            self._poison(plan, outcome)
        return outcome

    def _sampled(self, plan: StepPlan) -> StepOutcome:
        """Of a step that deferred its sampling: it may fail there too, or one of its rows."""
        assert self.core is not None
        forward = self._forwards.pop(plan.ticket, None)
        if plan.cancelled or forward is None:
            return self._runner.run(plan, False)
        fails = self._random.random() < self.faults.fail
        outcome = self._runner.run(plan, fails)
        self.samplings_run += 1
        if fails:
            self.plans_failed += 1
            self.core.failed_plans.add(plan.ticket)
        elif self._random.random() < self.faults.poison:
            self._poison(forward, outcome)
        return outcome

    def _touched(self, plan: StepPlan) -> set[tuple[int, int]]:
        touched = {(g, block) for g, source, target in plan.copies for block in (source, target)}
        for handle, start in zip(plan.decode_handles, plan.decode_starts, strict=True):
            touched |= self._runner.blocks(handle, start + 1)
        for entry in plan.entries:
            end = entry.start + entry.count + len(entry.draft_tokens)
            touched |= self._runner.blocks(entry.handle, end)
        return touched

    def _spoil(self, plan: StepPlan) -> None:
        for handle, start in zip(plan.decode_handles, plan.decode_starts, strict=True):
            self._runner.spoil(handle, start, start + 1)
        for entry in plan.entries:
            end = entry.start + entry.count + len(entry.draft_tokens)
            self._runner.spoil(entry.handle, entry.start, end)

    def _poison(self, plan: StepPlan, outcome: StepOutcome) -> None:
        """Makes the logits of one row that is read NaN, and what it wrote."""
        assert self.core is not None
        entries = [i for i, entry in enumerate(plan.entries) if entry.sample or entry.prompt_rows]
        count = len(plan.decode_handles) + len(entries)
        if not count:
            return
        chosen = self._random.randrange(count)
        row = SampledRow(failure=MlxrtError(Reason.NON_FINITE_LOGITS, "simulated NaN logits"))
        if chosen < len(plan.decode_handles):
            if chosen in outcome.decode_details:
                return
            outcome.decode_details[chosen] = row
            handle, start, length = plan.decode_handles[chosen], plan.decode_starts[chosen], 1
        else:
            index = entries[chosen - len(plan.decode_handles)]
            if outcome.entry_rows[index].failure is not None:
                return
            outcome.entry_rows[index] = row
            entry = plan.entries[index]
            handle, start, length = entry.handle, entry.start, entry.count
        self.rows_poisoned += 1
        self.core.injected[plan.ticket] = 1
        if self._random.random() < 0.5:
            self._runner.spoil(handle, start, start + length)
