"""`python -m mlxrt.testing.simulation`: runs seeds; the first that fails leaves a folder."""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import structlog

from mlxrt.testing.simulation.simulation import Report, Simulation

EVENTS = 500


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


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the seeds asked for; 1 where one failed."""
    parser = argparse.ArgumentParser(prog="python -m mlxrt.testing.simulation", description=__doc__)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--seed", type=int, help="one seed")
    which.add_argument("--seeds", default="0:2000", help="FIRST:END, 0:2000 unless given")
    parser.add_argument("--events", type=int, default=EVENTS, help="events of a run")
    parser.add_argument("--folder", type=Path, default=Path("simulation-failures"))
    options = parser.parse_args(arguments)
    silence_logs()
    first, end = (options.seed, options.seed + 1) if options.seed is not None else map(
        int, options.seeds.split(":")
    )  # fmt: skip
    started_s, events, coverage = time.perf_counter(), 0, Counter[str]()
    for seed in range(first, end):
        report = simulate(seed, options.events)
        events += report.events
        coverage.update(report.coverage)
        if report.violations:
            place = write_failure(report, options.folder, options.events)
            print(f"seed {seed}: {report.violations[0]}\n{place}", file=sys.stderr)
            print(replay_command(seed, options.events), file=sys.stderr)
            return 1
    took_s = time.perf_counter() - started_s
    print(f"{end - first} seeds, {events} events, {took_s:.1f} s, {events / took_s:.0f} events/s")
    print(", ".join(f"{name} {count}" for name, count in sorted(coverage.items())))
    if options.seed is not None:
        print(f"history {report.history.digest()}")
    return 0
