"""`mlxrt bench step`: decode steps through gRPC, without it, and by mlx-lm alone.

All arms of a cell are up at once, contexts filled, and take turns: every repeat times each arm
once, so that a slow spell of the machine meets all of them. Figures are medians over the repeats.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from mlxrt.bench.arms import Arm, StreamArm, UnaryArm, WorkerArm
from mlxrt.bench.fake_pipeline import fake_overheads_ms
from mlxrt.bench.population import BLOCK_SIZE, ROWS_MAX, blocks_for
from mlxrt.bench.random_model import write_random_model
from mlxrt.config import ConfigError
from mlxrt.models import ModelError, resolve_folder
from mlxrt.testing.server_process import ServerProcess

WARM_STEPS = 4
AnArm = TypeVar("AnArm", bound=Arm)


@dataclass(frozen=True, slots=True)
class Cell:
    """One model at one number of sequences.

    Attributes:
        mlx_lm_tokens_per_s: None for the fake model.
        overhead_ms_p50, overhead_ms_p99: for the fake model, from request bytes to reply bytes
            inside the server; else a unary step's round trip less what the server says it queued,
            built, ran and read back.
    """

    sequences: int
    grpc_stream_tokens_per_s: float
    grpc_unary_tokens_per_s: float
    in_process_tokens_per_s: float
    mlx_lm_tokens_per_s: float | None
    overhead_ms_p50: float
    overhead_ms_p99: float


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured.

    Attributes:
        context: positions filled before the clock starts.
        repeats: times each arm is timed.
        steps: decode steps in one timing.
        blas: as `mlxrt serve --blas`.
    """

    context: int = 256
    repeats: int = 5
    steps: int = 16
    blas: str = "auto"

    @property
    def growth(self) -> int:
        """Positions beyond the context that any arm may reach."""
        return self.steps * (self.repeats + 1) * 2 + 128


def bench_step(
    models: Iterable[str],
    sequence_counts: Iterable[int],
    plan: Plan,
    on_cell: Callable[[str, Cell], None],
) -> dict[str, object]:
    """Measures every model at every number of sequences; returns the report that `--json`
    writes."""
    report = []
    device = ""
    counts = list(sequence_counts)
    for name in models:
        cells = []
        with _model_path(name) as path, _server(path, max(counts), plan) as server:
            for sequences in counts:
                cell, device = _measure(name, path, server.address, sequences, plan)
                on_cell(name, cell)
                cells.append(asdict(cell))
        report.append({"name": name, "cells": cells})
    return {"device": device, "models": report}


@contextmanager
def _model_path(name: str) -> Iterator[str]:
    """The folder of a benchmark's model, or "fake".

    Raises:
        ConfigError: there is no such model.
    """
    if name == "fake":
        yield name
    elif name == "qwen3-30m":
        with tempfile.TemporaryDirectory(prefix="mlxrt-") as folder:
            write_random_model(Path(folder))
            yield folder
    else:
        try:
            found = resolve_folder(name)
        except ModelError as error:
            raise ConfigError(str(error)) from error
        yield str(found)


def _server(path: str, sequences: int, plan: Plan) -> ServerProcess:
    blocks = 2 * sequences * blocks_for(plan.context + plan.growth) + 1
    pool = ["--block-size", str(BLOCK_SIZE), "--num-blocks", str(blocks)]
    model = ["--fake"] if path == "fake" else ["--model", path, "--blas", plan.blas]
    limits = ["--set", f"limits.max_step_rows={ROWS_MAX}", "--log-level", "warning"]
    return ServerProcess([*model, *limits, *pool])


def _measure(name: str, path: str, address: str, sequences: int, plan: Plan) -> tuple[Cell, str]:
    """One cell, and the server's device."""
    with ExitStack() as stack:

        def opened(arm: AnArm) -> AnArm:
            stack.callback(arm.close)
            return arm

        grpc_arguments = (address, sequences, plan.context, plan.growth)
        stream, unary = opened(StreamArm(*grpc_arguments)), opened(UnaryArm(*grpc_arguments))
        shape = [path, str(sequences), str(plan.context)]
        arms: list[Arm] = [stream, unary]
        arms.append(
            opened(WorkerArm("mlxrt.bench.in_process_arm", [*shape, str(plan.growth), plan.blas]))
        )
        if name != "fake":
            arms.append(opened(WorkerArm("mlxrt.bench.mlx_lm_arm", [*shape, plan.blas, "float32"])))
        for arm in arms:
            arm.run(WARM_STEPS)
        seconds: list[list[float]] = [[] for _ in arms]
        for _ in range(plan.repeats):
            for arm, taken in zip(arms, seconds, strict=True):
                taken.append(arm.run(plan.steps))
        rates = [sequences * plan.steps / statistics.median(taken) for taken in seconds]
        overheads = (
            fake_overheads_ms(sequences, plan.context) if name == "fake" else unary.overheads_ms(64)
        )
        device = stream.device
    rates += [0.0] * (4 - len(rates))
    return Cell(
        sequences, round(rates[0], 1), round(rates[1], 1), round(rates[2], 1),
        round(rates[3], 1) if name != "fake" else None,
        round(_percentile(overheads, 50), 3), round(_percentile(overheads, 99), 3),
    ), device  # fmt: skip


def _percentile(values: list[float], percent: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]
