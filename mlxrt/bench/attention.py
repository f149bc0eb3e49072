"""`mlxrt bench attention`: decode attention by the paged op, beside gather + SDPA and contiguous
SDPA, over a grid.

Each figure is the least of several timed evaluations in two sweeps over the whole grid, after one
that is not counted. `fragmentation` is the paged time over the paged time with ascending ids. An
arm that did not take its path is an error, not a figure.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass

import mlx.core as mx

from mlxrt import kernels
from mlxrt.bench.attention_arms import LAYOUTS, Case, Place

FULL_GRID = ((1024, 4096, 16384, 32768), (1, 4, 8, 32, 64), (16, 32, 64))
"""Contexts, batches and block sizes of `--full`."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One measured configuration; times in microseconds, bandwidth over the keys and values read
    once. The paged arms, and what is made of them, are None in the layout that they don't read.
    """

    context: int
    batch: int
    block_size: int
    layout: str
    dtype: str
    gather_us: float
    gather_only_us: float
    append_us: float
    contiguous_us: float
    paged_us: float | None
    paged_ordered_us: float | None
    fragmentation: float | None
    paged_gb_per_s: float | None
    path: str


def measure_arms(place: Place, budget_s: float, known: dict[str, float]) -> dict[str, float]:
    """Times each arm of a configuration, about `budget_s` long each; returns the least microseconds
    by arm, `known` ones included.

    Raises:
        ArmError: an arm did not take its path.
    """
    case = Case(place)
    least = dict(known)
    for name, run in case.arms().items():
        before = kernels.counters()
        took, runs = _least_us(run, budget_s)
        case.check_path(name, runs, before)
        least[name] = min(took, least.get(name, float("inf")))
    return least


def cell_of(place: Place, least: dict[str, float]) -> Cell:
    """Makes the report's row of what was measured."""
    paged, ordered = least.get("paged"), least.get("paged_ordered")
    return Cell(
        **asdict(place),
        gather_us=round(least["gather"], 1),
        gather_only_us=round(least["gather_only"], 1),
        append_us=round(least["append"], 1),
        contiguous_us=round(least["contiguous"], 1),
        paged_us=None if paged is None else round(paged, 1),
        paged_ordered_us=None if ordered is None else round(ordered, 1),
        fragmentation=None if paged is None or ordered is None else round(paged / ordered, 3),
        paged_gb_per_s=None if paged is None else round(place.bytes_read / paged / 1e3, 2),
        path="gather" if paged is None else "native",
    )


def _least_us(run: Callable[[], object], budget_s: float, most: int = 50) -> tuple[float, int]:
    """Least duration of `run` evaluated, over at least 2 and at most `most` runs within about
    `budget_s`, and the number of runs, an uncounted first one included."""
    mx.eval(run())
    mx.synchronize()
    best, spent, count = float("inf"), 0.0, 0
    while count < 2 or (count < most and spent < budget_s):
        start = time.perf_counter()
        mx.eval(run())
        mx.synchronize()
        took = time.perf_counter() - start
        best, spent, count = min(best, took), spent + took, count + 1
    return best * 1e6, count + 1


@dataclass(frozen=True, slots=True)
class Grid:
    """What `bench_attention` measures.

    Attributes:
        budget_s: seconds for each figure of a cell in each sweep.
        bytes_max: configurations that need more are left out, and the report says which.
    """

    contexts: tuple[int, ...]
    batches: tuple[int, ...]
    block_sizes: tuple[int, ...]
    dtypes: tuple[str, ...]
    layouts: tuple[str, ...] = LAYOUTS
    budget_s: float = 0.3
    sweeps: int = 2
    bytes_max: int = 8 << 30

    def places(self) -> list[Place]:
        """All configurations, those that need too much memory included."""
        axes = self.dtypes, self.layouts, self.block_sizes, self.contexts, self.batches
        return [
            Place(context, batch, block_size, layout, dtype)
            for dtype, layout, block_size, context, batch in itertools.product(*axes)
        ]


def bench_attention(grid: Grid, on_cell: Callable[[Cell], None]) -> dict[str, object]:
    """Measures the grid on MLX's default device; returns the report that `--json` writes. Any
    thread, alone on the machine.

    Raises:
        ArmError: an arm did not take its path.
    """
    bandwidth = _read_gb_per_s()
    places = [place for place in grid.places() if place.bytes_needed <= grid.bytes_max]
    least: dict[Place, dict[str, float]] = {place: {} for place in places}
    for sweep in range(grid.sweeps):
        for place in places:
            least[place] = measure_arms(place, grid.budget_s, least[place])
            mx.clear_cache()
            if sweep == grid.sweeps - 1:
                on_cell(cell_of(place, least[place]))
    return {
        "device": _device_name(),
        "read_gb_per_s": round(max(bandwidth, _read_gb_per_s()), 2),
        "sweeps": grid.sweeps,
        "cells": [asdict(cell_of(place, least[place])) for place in places],
        "left_out": [asdict(place) for place in grid.places() if place not in least],
    }


def measure_cell(place: Place, budget_s: float) -> Cell:
    """Measures one configuration once.

    Raises:
        ArmError: an arm did not take its path.
    """
    return cell_of(place, measure_arms(place, budget_s, {}))


def csv_lines(cells: Iterable[dict[str, object]]) -> list[str]:
    """The cells as lines that begin with "CSV:", names first."""
    rows = list(cells)
    lines = ["CSV:" + ",".join(rows[0])] if rows else []
    for row in rows:
        lines.append("CSV:" + ",".join("" if v is None else str(v) for v in row.values()))
    return lines


def _device_name() -> str:
    if mx.default_device().type == mx.cpu:
        return f"cpu ({kernels.simd_level()}, {kernels.num_threads()} threads)"
    return f"gpu ({mx.device_info().get('device_name', 'unknown')})"


def _read_gb_per_s() -> float:
    """How fast the device reads memory."""
    if mx.default_device().type == mx.cpu:
        return kernels.read_bandwidth()
    buffer = mx.zeros(1 << 28, mx.float32)
    mx.eval(buffer)
    return buffer.nbytes / _least_us(lambda: mx.max(buffer), 0.2)[0] / 1e3
