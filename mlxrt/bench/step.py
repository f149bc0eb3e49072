"""`mlxrt bench step`: decode steps through gRPC, without it, and by mlx-lm alone.

All arms of a cell are up at once, contexts filled, and take turns: every repeat times each arm
once, so that a slow spell of the machine meets all of them. Figures are medians over the repeats of
all rounds.
"""

from __future__ import annotations

import statistics
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

from mlxrt_client.v1 import SamplingParams

from mlxrt.bench.arms import Arm, GrpcArm, StreamArm, UnaryArm, WorkerArm
from mlxrt.bench.fake_pipeline import fake_overheads_ms
from mlxrt.bench.population import BLOCK_SIZE, ROWS_MAX, blocks_for
from mlxrt.bench.prefill import PrefillCell, bench_prefill
from mlxrt.bench.random_model import QWEN3_30M, QWEN3_600M, write_random_model
from mlxrt.config import ConfigError
from mlxrt.models import ModelError, resolve_folder
from mlxrt.testing.server_process import ServerProcess

WARM_STEPS = 4
ARMS = ("stream", "unary", "in_process", "mlx_lm", "dense", "sampled")
DRAWN = SamplingParams(temperature=0.8, top_p=0.95)
"""The rules of the arm `sampled`."""
_RANDOM_MODELS = {"qwen3-30m": QWEN3_30M, "qwen3-600m": QWEN3_600M}


@dataclass(frozen=True, slots=True)
class Cell:
    """One model at one number of sequences and one context; an arm that did not run is None.

    Attributes:
        mlx_lm_tokens_per_s: `BatchGenerator`; None for the fake model too.
        dense_tokens_per_s: mlx-lm's model in a bare loop; None for the fake model too.
        sampled_stream_tokens_per_s: the stream, of sequences that draw their tokens.
        overhead_ms_p50, overhead_ms_p99: for the fake model, from request bytes to reply bytes
            inside the server; else a unary step's round trip less what the server says it queued,
            built, ran and read back.
    """

    sequences: int
    context: int
    grpc_stream_tokens_per_s: float | None = None
    grpc_unary_tokens_per_s: float | None = None
    in_process_tokens_per_s: float | None = None
    mlx_lm_tokens_per_s: float | None = None
    dense_tokens_per_s: float | None = None
    sampled_stream_tokens_per_s: float | None = None
    overhead_ms_p50: float | None = None
    overhead_ms_p99: float | None = None


@dataclass(slots=True)
class _Timed:
    """What the arms of a cell took so far: seconds of each timing, by arm, and see Cell."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    overheads_ms: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured.

    Attributes:
        contexts: positions filled before the clock starts.
        repeats: times each arm is timed, in each round.
        rounds: times the server and the processes of the arms are started anew. How fast a process
            is depends on where its memory happens to lie: repeats in one do not show that.
        steps: decode steps in one timing.
        blas, dtype: as for `mlxrt serve`; "auto" is the same type for mlx-lm.
        arms: of ARMS, those that run.
        is_apart: each arm is up alone, one after the other: for cells of which the device holds one
            copy of the context and no more.
        in_flight: steps that the arms over a stream keep in flight; in process it is two.
        num_blocks: of the server's pool, at least; more where the arms need more.
        prefills: `(sequences, context)` whose prefill is timed as well.
    """

    contexts: tuple[int, ...] = (256,)
    repeats: int = 5
    rounds: int = 1
    steps: int = 48
    blas: str = "auto"
    dtype: str = "auto"
    arms: tuple[str, ...] = ("stream", "unary", "in_process", "mlx_lm")
    is_apart: bool = False
    in_flight: int = 2
    num_blocks: int = 1
    prefills: tuple[tuple[int, int], ...] = ()

    @property
    def growth(self) -> int:
        """Positions beyond the context that any arm may reach."""
        return self.steps * (self.repeats + 1) * 2 + 128

    def server_blocks(self, sequences: int) -> int:
        """Blocks of the server's pool: for the arms that are on it at once, in the largest cell."""
        grpc_arms = 1 if self.is_apart else len({"stream", "unary", "sampled"} & {*self.arms})
        each = blocks_for(max(self.contexts) + self.growth)
        prefilled = max((n * blocks_for(context + 1) for n, context in self.prefills), default=0)
        return max(grpc_arms * sequences * each + 1, prefilled + 1, self.num_blocks)

    @property
    def length(self) -> int:
        """Positions of the longest sequence."""
        return max([*self.contexts, *(context for _, context in self.prefills)]) + self.growth


def bench_step(
    models: Iterable[str],
    sequence_counts: Iterable[int],
    plan: Plan,
    on_cell: Callable[[str, Cell | PrefillCell], None],
) -> dict[str, object]:
    """Measures every model at every number of sequences and context; returns the report that
    `--json` writes.

    Raises:
        ConfigError: there is no such model or arm.
    """
    if unknown := set(plan.arms) - set(ARMS):
        raise ConfigError(f"no arm {', '.join(sorted(unknown))}; there are {', '.join(ARMS)}")
    report = []
    device = ""
    counts = list(sequence_counts)
    for name in models:
        with _model_path(name) as path:
            cells, prefills, on = _bench_model(path, counts, plan, partial(on_cell, name))
        device = on or device
        report.append(
            {
                "name": name,
                "cells": [asdict(cell) for cell in cells],
                "prefills": [asdict(cell) for cell in prefills],
            }
        )
    return {
        "device": device, "in_flight": plan.in_flight, "rounds": plan.rounds,
        "num_blocks": plan.server_blocks(max(counts)), "models": report,
    }  # fmt: skip


def _bench_model(
    path: str, counts: list[int], plan: Plan, on_cell: Callable[[Cell | PrefillCell], None]
) -> tuple[list[Cell], list[PrefillCell], str]:
    """All cells of a model, its prefills, and the server's device."""
    cells, prefills, device = [], [], ""
    timed = {(n, context): _Timed() for context in plan.contexts for n in counts}
    for rounds_left in reversed(range(plan.rounds)):
        with _server(path, max(counts), plan) as server:
            for (sequences, context), so_far in timed.items():
                device = _time(path, server.address, sequences, context, plan, so_far)
                if not rounds_left:
                    cells.append(_cell(path, sequences, context, plan, so_far))
                    on_cell(cells[-1])
            for sequences, context in plan.prefills if path != "fake" and not rounds_left else ():
                measured = bench_prefill(
                    path, server.address, sequences, context, plan.repeats, plan.blas, plan.dtype
                )
                on_cell(measured)
                prefills.append(measured)
    return cells, prefills, device


def prefill_of(text: str) -> tuple[int, int]:
    """Sequences and context of a text like "8x1024".

    Raises:
        ConfigError: it is no such text.
    """
    sequences, _, context = text.partition("x")
    if not (sequences.isdecimal() and context.isdecimal() and int(sequences) and int(context)):
        raise ConfigError(f"prefill: {text!r} is not SEQUENCESxCONTEXT, such as 8x1024")
    return int(sequences), int(context)


@contextmanager
def _model_path(name: str) -> Iterator[str]:
    """The folder of a benchmark's model, or "fake".

    Raises:
        ConfigError: there is no such model.
    """
    if name == "fake":
        yield name
    elif shape := _RANDOM_MODELS.get(name):
        with tempfile.TemporaryDirectory(prefix="mlxrt-") as folder:
            write_random_model(Path(folder), shape)
            yield folder
    else:
        try:
            found = resolve_folder(name)
        except ModelError as error:
            raise ConfigError(str(error)) from error
        yield str(found)


def _server(path: str, sequences: int, plan: Plan) -> ServerProcess:
    pool = ["--block-size", str(BLOCK_SIZE), "--num-blocks", str(plan.server_blocks(sequences))]
    model = ["--fake"] if path == "fake" else ["--model", path, "--blas", plan.blas]
    limits = ["--set", f"limits.max_step_rows={ROWS_MAX}", "--dtype", plan.dtype]
    limits += ["--set", f"limits.max_model_length={plan.length}"]
    limits += ["--set", f"limits.max_inflight_steps={max(2, plan.in_flight)}"]
    return ServerProcess([*model, *limits, "--log-level", "warning", *pool])


def _openers(
    path: str, address: str, sequences: int, context: int, plan: Plan
) -> dict[str, Callable[[], Arm]]:
    grpc_arguments = (address, sequences, context, plan.growth)
    shape = [path, str(sequences), str(context)]
    own = [*shape, str(plan.growth), plan.blas, plan.dtype]
    alone = [*shape, plan.blas, plan.dtype]
    return {
        "stream": lambda: StreamArm(*grpc_arguments, in_flight=plan.in_flight),
        "unary": lambda: UnaryArm(*grpc_arguments),
        "in_process": lambda: WorkerArm("mlxrt.bench.in_process_arm", own),
        "mlx_lm": lambda: WorkerArm("mlxrt.bench.mlx_lm_arm", alone),
        "dense": lambda: WorkerArm("mlxrt.bench.mlx_lm_arm", [*alone, "dense"]),
        "sampled": lambda: StreamArm(*grpc_arguments, sampling=DRAWN, in_flight=plan.in_flight),
    }


def _time(path: str, address: str, sequences: int, context: int, plan: Plan, so_far: _Timed) -> str:
    """Times the arms of a cell once more; returns the server's device."""
    openers = _openers(path, address, sequences, context, plan)
    names = [name for name in plan.arms if not (path == "fake" and name in ("mlx_lm", "dense"))]
    device = ""
    for together in [[name] for name in names] if plan.is_apart else [names]:
        with ExitStack() as stack:
            arms = {name: openers[name]() for name in together}
            for arm in arms.values():
                stack.callback(arm.close)
                arm.run(WARM_STEPS)
            turns = list(arms.items())
            for _ in range(plan.repeats):
                for name, arm in turns:
                    so_far.seconds[name].append(arm.run(plan.steps))
                turns.reverse()  # nobody always follows the same other
            unary = arms.get("unary")
            if isinstance(unary, UnaryArm) and path != "fake":
                so_far.overheads_ms += unary.overheads_ms(64)
            device = next((a.device for a in arms.values() if isinstance(a, GrpcArm)), device)
    return device


def _cell(path: str, sequences: int, context: int, plan: Plan, timed: _Timed) -> Cell:
    overheads_ms = timed.overheads_ms
    if path == "fake":
        overheads_ms = fake_overheads_ms(sequences, context)
    rates = {
        name: round(sequences * plan.steps / statistics.median(taken), 1)
        for name, taken in timed.seconds.items()
    }
    return Cell(
        sequences, context, rates.get("stream"), rates.get("unary"), rates.get("in_process"),
        rates.get("mlx_lm"), rates.get("dense"), rates.get("sampled"),
        *(round(_percentile(overheads_ms, p), 3) if overheads_ms else None for p in (50, 99)),
    )  # fmt: skip


def _percentile(values: list[float], percent: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]
