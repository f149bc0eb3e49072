"""`python -m mlxrt.testing.simulation`: runs seeds; the first that fails leaves a folder."""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

import structlog

from mlxrt.testing.simulation.simulation import Report, Simulation

EVENTS = 500
_SEEDS_AT_A_TIME = 50


def silence_logs() -> None:
    """Keeps the server's log lines, of which there are many, to nobody."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))


def simulate(seed: int, events: int = EVENTS) -> Report:
    """One run."""
    return Simulation(seed).run(events)


def write_failure(report: Report, folder: Path, events: int) -> Path:
    """Writes what is needed to see a failure again; answers its folder."""
    place = folder / f"seed-{report.seed}"
    place.mkdir(parents=True, exist_ok=True)
    (place / "history.json").write_text(json.dumps(report.history.as_json(), indent=1))
    (place / "violations.txt").write_text("\n".join(report.violations) + "\n")
    (place / "replay.txt").write_text(replay_command(report.seed, events) + "\n")
    return place


def replay_command(seed: int, events: int) -> str:
    """The line that runs it again."""
    return f"python -m mlxrt.testing.simulation --seed {seed} --events {events}"


@dataclass(slots=True)
class Tally:
    """What came of some seeds.

    Attributes:
        seeds: those that were run.
        coverage: how often each thing happened.
        failures: the seeds that violated something, with the first violation.
    """

    seeds: int = 0
    events: int = 0
    coverage: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[int, str]] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        """Counts another's seeds too."""
        self.seeds += other.seeds
        self.events += other.events
        self.coverage.update(other.coverage)
        self.failures += other.failures


def run_seeds(seeds: range, events: int, folder: Path) -> Tally:
    """Runs seeds until one fails, which leaves a folder."""
    silence_logs()
    tally = Tally()
    for seed in seeds:
        report = simulate(seed, events)
        tally.add(Tally(1, report.events, report.coverage))
        if report.violations:
            write_failure(report, folder, events)
            tally.failures.append((seed, report.violations[0]))
            break
    return tally


def run_seeds_in_processes(seeds: range, events: int, folder: Path, processes: int) -> Tally:
    """Runs seeds, some at a time in each process; none more once one has failed."""
    parts = [seeds[at : at + _SEEDS_AT_A_TIME] for at in range(0, len(seeds), _SEEDS_AT_A_TIME)]
    tally = Tally()
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        runs = [pool.submit(run_seeds, part, events, folder) for part in parts]
        for run in as_completed(runs):
            tally.add(run.result())
            if tally.failures:
                pool.shutdown(wait=False, cancel_futures=True)
                break
    return tally


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the seeds asked for; 1 where one failed."""
    parser = argparse.ArgumentParser(prog="python -m mlxrt.testing.simulation", description=__doc__)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--seed", type=int, help="one seed")
    which.add_argument("--seeds", default="0:2000", help="FIRST:END, 0:2000 unless given")
    parser.add_argument("--events", type=int, default=EVENTS, help="events of a run")
    parser.add_argument("--processes", type=int, default=1, help="seeds that run at a time")
    parser.add_argument("--folder", type=Path, default=Path("simulation-failures"))
    options = parser.parse_args(arguments)
    silence_logs()
    first, end = (options.seed, options.seed + 1) if options.seed is not None else map(
        int, options.seeds.split(":")
    )  # fmt: skip
    if options.processes < 1:
        parser.error(f"--processes {options.processes} is not 1 or more")
    started_s = time.perf_counter()
    run = (range(first, end), options.events, options.folder)
    one = options.processes == 1
    tally = run_seeds(*run) if one else run_seeds_in_processes(*run, options.processes)
    for seed, violation in tally.failures:
        print(f"seed {seed}: {violation}\n{options.folder / f'seed-{seed}'}", file=sys.stderr)
        print(replay_command(seed, options.events), file=sys.stderr)
        return 1
    took_s = time.perf_counter() - started_s
    rate = tally.events / took_s
    print(f"{tally.seeds} seeds, {tally.events} events, {took_s:.1f} s, {rate:.0f} events/s")
    print(", ".join(f"{name} {count}" for name, count in sorted(tally.coverage.items())))
    if options.seed is not None:
        print(f"history {simulate(options.seed, options.events).history.digest()}")
    return 0

