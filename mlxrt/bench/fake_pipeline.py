"""What the server itself costs: a step from request bytes to reply bytes over the fake model,
without a transport."""

from __future__ import annotations

import asyncio
import time

from mlxrt_client import messages
from mlxrt_client.v1 import SessionRef, StepRequest

from mlxrt.bench.population import BLOCK_SIZE, blocks_for, prompts_for
from mlxrt.core import answers
from mlxrt.core.model import Limits, ModelFacts
from mlxrt.core.step import StepOutcome
from mlxrt.engine.base import EngineDescription
from mlxrt.errors import MlxrtError
from mlxrt.server.lifecycle import Lifecycle, ServerState
from mlxrt.server.reaper import monotonic_ms
from mlxrt.server.runtime import Runtime, build_runtime
from mlxrt.server.tuning import tune_garbage_collector
from mlxrt.testing.fake_engine import FakeEngine

STEPS = 2000
WARM_STEPS = 200


def fake_overheads_ms(sequences: int, context: int, steps: int = STEPS) -> list[float]:
    """Milliseconds of each of `steps` decode steps of `sequences` sequences with `context`
    positions filled."""
    return asyncio.run(_measure(sequences, context, steps))


class _Direct:
    """An EngineListener that hands outcomes straight on, as the server's does on its own thread."""

    def __init__(self, engine: FakeEngine, limits: Limits) -> None:
        self._engine = engine
        self._limits = limits
        self.runtime: Runtime | None = None

    def on_progress(self, fraction: float, activity: str) -> None:
        pass

    def on_ready(self, facts: ModelFacts, description: EngineDescription) -> None:
        lifecycle = Lifecycle()
        lifecycle.move_to(ServerState.SERVING)
        self.runtime = build_runtime(
            facts, self._limits, self._engine, lifecycle, monotonic_ms, self.on_lost
        )

    def on_outcome(self, outcome: StepOutcome) -> None:
        assert self.runtime is not None
        self.runtime.dispatcher.deliver(outcome)

    def on_lost(self, error: MlxrtError) -> None:
        raise error


async def _measure(sequences: int, context: int, steps: int) -> list[float]:
    blocks_each = blocks_for(context + steps + WARM_STEPS + 1)
    engine = FakeEngine(block_size=BLOCK_SIZE, num_blocks=sequences * blocks_each + 1)
    listener = _Direct(engine, Limits(max_step_rows=max(context, sequences)))
    engine.start(listener)
    runtime = listener.runtime
    assert runtime is not None
    opened = runtime.core.open_session(
        "bench", 600_000, "bench", session_id="0" * 32, session_seed=1, now_ms=monotonic_ms()
    )
    _fill(runtime, opened.session, sequences, context, blocks_each)
    ref = _wire(opened.session)
    ids = list(range(1, sequences + 1))
    requests = [
        StepRequest(
            session=ref, step_number=sequences + 1 + index, decode_sequence_ids=ids
        ).SerializeToString()
        for index in range(WARM_STEPS + steps)
    ]
    tune_garbage_collector()
    run = runtime.pipeline.run_bytes
    for request in requests[:WARM_STEPS]:
        run(request)
    overheads = []
    for request in requests[WARM_STEPS:]:
        start = time.perf_counter()
        run(request)
        overheads.append((time.perf_counter() - start) * 1e3)
    return overheads


def _wire(ref: answers.SessionRef) -> SessionRef:
    return SessionRef(session_id=ref.session_id, epoch=ref.epoch)


def _fill(
    runtime: Runtime, ref: answers.SessionRef, sequences: int, context: int, blocks_each: int
) -> None:
    """Registers every sequence and fills its context, one step each."""
    counts = {0: sequences * blocks_each}
    leased = runtime.core.allocate_blocks(ref, "bench", counts, monotonic_ms())[0]
    prompts = prompts_for(sequences, context, runtime.facts.vocabulary_size)
    for index in range(sequences):
        table = leased[index * blocks_each : (index + 1) * blocks_each]
        step = StepRequest(session=_wire(ref), step_number=index + 1)
        step.new_sequences.append(messages.new_sequence(index + 1, prompts[index], {0: table}))
        step.items.append(messages.chunk_item(index + 1, context, sample=True))
        runtime.pipeline.run_bytes(step.SerializeToString())
