"""Core and engine in one process, without a server: what the transport is measured against.

`python -m mlxrt.bench.in_process_arm MODEL SEQUENCES CONTEXT GROWTH BLAS` fills the context, prints "ready", then answers every
line `STEPS` on its input with the seconds that this many decode steps took, two in flight. MODEL "fake" is the fake model.
"""

from __future__ import annotations

import queue
import sys
import time

from mlxrt.bench.prompts import prompts_for
from mlxrt.config import load_settings
from mlxrt.core.core import Core
from mlxrt.core.model import Limits, ModelFacts
from mlxrt.core.step import Item, NewSequence, StepInput, StepOutcome, TokenSource
from mlxrt.engine.base import EngineDescription
from mlxrt.errors import MlxrtError
from mlxrt.launch import make_engine


class LocalRunner:
    """Drives a core and its engine; hears the engine's answers."""

    def __init__(self, model: str, num_blocks: int, limits: Limits, blas: str) -> None:
        """Loads the model; returns once it is warm."""
        self._answers: queue.SimpleQueue[StepOutcome | MlxrtError] = queue.SimpleQueue()
        self._ready: queue.SimpleQueue[ModelFacts | MlxrtError] = queue.SimpleQueue()
        fake = model == "fake"
        settings = load_settings(
            None, model="bundled" if fake else model, fake=fake, num_blocks=num_blocks, blas=blas
        )
        self._engine = make_engine(settings)
        self._engine.start(self)
        facts = self._ready.get()
        if isinstance(facts, MlxrtError):
            raise facts
        self.facts = facts
        self.core = Core(facts, limits)
        opened = self.core.open_session(
            "bench", 600_000, "bench", session_id="0" * 32, session_seed=1, now_ms=_now_ms()
        )
        self.ref = opened.session
        self._number = 0

    def on_progress(self, fraction: float, activity: str) -> None:
        """See EngineListener."""

    def on_ready(self, facts: ModelFacts, description: EngineDescription) -> None:
        """See EngineListener."""
        self._ready.put(facts)

    def on_outcome(self, outcome: StepOutcome) -> None:
        """See EngineListener."""
        self._answers.put(outcome)

    def on_lost(self, error: MlxrtError) -> None:
        """See EngineListener."""
        self._ready.put(error)
        self._answers.put(error)

    def submit(self, **content: object) -> None:
        """Accepts one step and hands it to the engine."""
        self._number += 1
        step = StepInput(self._number, self._number.to_bytes(8, "little"), **content)  # type: ignore[arg-type]
        self.core.accept(self.ref.session_id, self.ref.epoch, step, _now_ms())
        plan = self.core.next_plan(_now_ms())
        assert plan is not None
        self._engine.submit(plan)

    def finish(self) -> None:
        """Waits for the oldest step and commits it."""
        outcome = self._answers.get()
        if isinstance(outcome, MlxrtError):
            raise outcome
        for _, reply in self.core.finish(outcome, _now_ms()):
            if reply.error is not None:
                raise reply.error


def _now_ms() -> int:
    return time.monotonic_ns() // 1_000_000


def _fill(runner: LocalRunner, sequences: int, context: int, growth: int, rows_max: int) -> None:
    blocks_each = -(-(context + growth) // runner.facts.block_size)
    counts = {0: blocks_each * sequences}
    leased = runner.core.allocate_blocks(runner.ref, "bench", counts, _now_ms())[0]
    prompts = prompts_for(sequences, context, runner.facts.vocabulary_size)
    per_step = max(1, rows_max // context)
    for first in range(0, sequences, per_step):
        chosen = range(first, min(first + per_step, sequences))
        runner.submit(
            new_sequences=[
                NewSequence(i + 1, prompts[i], {0: leased[i * blocks_each : (i + 1) * blocks_each]})
                for i in chosen
            ],
            items=[
                Item(i + 1, context, source=TokenSource.REGISTERED, sample=True) for i in chosen
            ],
        )
        runner.finish()


def main() -> None:
    """See the module."""
    model, sequences, context, growth = sys.argv[1], *map(int, sys.argv[2:5])
    limits = Limits(max_step_rows=4096)
    num_blocks = sequences * -(-(context + growth) // 16) + 1
    runner = LocalRunner(model, num_blocks, limits, sys.argv[5])
    _fill(runner, sequences, context, growth, limits.max_step_rows)
    ids = list(range(1, sequences + 1))
    print("ready", flush=True)
    for line in sys.stdin:
        steps = int(line)
        start = time.perf_counter()
        for index in range(steps):
            runner.submit(decode_ids=ids)
            if index:
                runner.finish()
        runner.finish()
        print(time.perf_counter() - start, flush=True)


if __name__ == "__main__":
    main()
