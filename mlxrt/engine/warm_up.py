"""Runs every bucket once before the first client does, so that no step waits for a kernel to be
built.
"""

from __future__ import annotations

from mlxrt.core.sampling import GREEDY
from mlxrt.core.step import Entry, Registration, StepOutcome, StepPlan, TableUpdate, TokenSource
from mlxrt.engine.engine_config import EngineConfig
from mlxrt.engine.runner import DeviceLostError, StepRunner

_UNPADDED_ROWS = (1, 2, 8)


def warm_up(
    runner: StepRunner, buckets: tuple[int, ...], config: EngineConfig, max_length: int
) -> None:
    """Runs a decode and a prefill of each bucket's rows; without buckets of a few row counts.

    All rows lie in block 0, which no sequence ever reads. The runner's counters start anew
    afterwards.

    Raises:
        DeviceLostError: a step failed.
    """
    for row_count in buckets or _UNPADDED_ROWS:
        sequence_count = min(row_count, config.max_step_sequences, config.max_step_rows)
        _run(runner, [1] * sequence_count, config.block_size)
        chunk = min(row_count, max_length, config.max_step_rows)
        _run(runner, [chunk], config.block_size)
    runner.reset_counters()


def _run(runner: StepRunner, counts: list[int], block_size: int) -> None:
    """One step with a sequence for each of `counts`, all of its rows sampled as a client's would
    be.
    """
    handles = [-1 - index for index in range(len(counts))]
    block_counts = [-(-count // block_size) for count in counts]
    plan = StepPlan(
        ticket=0,
        registrations=[
            Registration(handle, [0] * count, GREEDY, 0)
            for handle, count in zip(handles, counts, strict=True)
        ],
        table_updates=[
            TableUpdate(handle, group, 0, [0] * count, count)
            for handle, count in zip(handles, block_counts, strict=True)
            for group in range(runner.group_count)
        ],
        entries=[
            Entry(handle, 0, count, TokenSource.REGISTERED, sample=True)
            for handle, count in zip(handles, counts, strict=True)
        ],
    )
    outcomes: list[StepOutcome] = []
    for each in (plan, StepPlan(ticket=0, retired=handles)):
        runner.begin(each, outcomes.append)
        outcomes.append(runner.finish())
    for outcome in outcomes:
        if outcome.failure is not None:
            raise DeviceLostError(f"a warm-up step failed: {outcome.failure}")
