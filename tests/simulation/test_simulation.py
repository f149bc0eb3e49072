"""The simulator over 2,000 seeds of 500 events: nothing may be violated, everything must be met."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from mlxrt.testing.simulation import silence_logs, simulate
from mlxrt.testing.simulation.command import (
    replay_command,
    run_seeds_in_processes,
    write_failure,
)
from mlxrt.testing.simulation.history import Answered, Settled
from mlxrt.testing.simulation.simulation import Report, Simulation
from mlxrt.testing.simulation.validators import validate

SEEDS = 2_000
EVENTS = 500
MET = {
    "kill", "drain", "sleep", "clock", "crash", "twin", "slow", "device lost", "plans failed",
    "rows poisoned", "sessions expired", "graces", "message lost", "message delayed",
    "message doubled", "message cuts", "replayed", "resend", "take over", "sync", "copy", "share",
    "copy on write", "share in a step", "resume in a step", "preempt", "resume", "roll back",
    "explicit", "pierce", "drafts", "drafts accepted", "preempt of drafts", "append to drafts",
    "masks", "deferred", "deferred masks", "masks by a call", "masks on the stream", "wrong masks",
    "masks refused", "masks never sent", "resend of masks", "sampled later", "expired waiting",
    "MASK_EMPTY", "prompt logprobs", "penalties",
    "free blocks", "free sequences", "close", "pause", "EPOCH_STALE", "STREAM_REPLACED",
    "PREDECESSOR_FAILED", "EXECUTION_FAILED", "NON_FINITE_LOGITS", "STEP_GAP", "SESSION_UNKNOWN",
    "NO_FREE_BLOCKS", "DRAINING", "DEVICE_LOST", "BLOCK_UNFILLED",
}  # fmt: skip


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    before = structlog.get_config()
    silence_logs()
    yield
    structlog.configure(**before)


def test_no_seed_finds_anything(tmp_path: Path) -> None:
    tally = run_seeds_in_processes(range(SEEDS), EVENTS, tmp_path, processes=2)
    for seed, violation in tally.failures:
        pytest.fail(f"{violation}\n{replay_command(seed, EVENTS)}\n{tmp_path}")
    assert (tally.seeds, tally.events) == (SEEDS, SEEDS * EVENTS)
    assert {name for name in MET if tally.coverage[name] == 0} == set()
    coverage = tally.coverage
    assert coverage["committed"] > 0.7 * coverage["step"]
    assert 0.2 < coverage["drafts accepted"] / coverage["drafts"] < 0.8


def test_a_seed_that_fails_is_told_by_its_process(tmp_path: Path) -> None:
    """A violation is made up for one of them, in the processes too."""
    program = tmp_path / "strict.py"
    program.write_text(STRICT)
    done = subprocess.run(
        [sys.executable, str(program), "--seeds", "0:300", "--processes", "2", "--folder",
         str(tmp_path / "failures")], capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "made up" in done.stderr and "--seed" in done.stderr
    assert list((tmp_path / "failures").glob("seed-*/history.json"))


STRICT = """
import sys
from mlxrt.testing.simulation import command
right = command.simulate
def strict(seed, events=500):
    report = right(seed, events)
    if seed == 120:
        report.violations.append("V9: made up")
    return report
command.simulate = strict
if __name__ == "__main__":
    sys.exit(command.main())
"""


def test_the_same_seed_is_the_same_run_in_every_process() -> None:
    command = [sys.executable, "-m", "mlxrt.testing.simulation", "--seed", "11"]
    digests = set()
    for hash_seed in ("0", "1", "77"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        digests.add(run.stdout.splitlines()[-1])
    assert len(digests) == 1
    assert f"history {simulate(11, EVENTS).history.digest()}" in digests
    assert simulate(12, EVENTS).history.digest() != simulate(11, EVENTS).history.digest()


def test_a_failure_leaves_what_is_needed_to_see_it_again(tmp_path: Path) -> None:
    report = simulate(3, 300)
    report.violations.append("V9: made up")
    place = write_failure(report, tmp_path, 300)
    assert (place / "replay.txt").read_text() == (
        "python -m mlxrt.testing.simulation --seed 3 --events 300\n"
    )
    history = json.loads((place / "history.json").read_text())
    assert history["violations"] == ["V9: made up"]
    assert len(history["settled"]) == len(report.history.settled) > 0


def good_run() -> Report:
    """A run with several settled and acknowledged steps."""
    report = next(r for r in map(simulate, range(100)) if len(r.history.answered) > 20)
    assert validate(report.history) == []
    return report


def committed(report: Report) -> Settled:
    """A committed step that was acknowledged."""
    acknowledged = {(a.session_id, a.step_number) for a in report.history.answered}
    return next(
        s
        for s in report.history.settled
        if s.committed and (s.session_id, s.step_number) in acknowledged
    )


def test_validators_see_what_they_are_for() -> None:
    report = good_run()
    log, step = report.history.settled, committed(report)
    log.append(step)
    assert any(v.startswith("V1") for v in validate(report.history))
    log.pop()
    log.remove(step)
    found = validate(report.history)
    assert any(v.startswith("V1") for v in found) and any(v.startswith("V3") for v in found)

    report = good_run()
    committed(report).digest = "00"
    assert any(v.startswith("V2") for v in validate(report.history))

    report = good_run()
    step = committed(report)
    report.history.answered.append(
        Answered(0, "c0", step.session_id, step.step_number, step.reply + b"\0", True)
    )
    assert any(v.startswith("V4") for v in validate(report.history))


def test_what_is_left_over_is_seen() -> None:
    """V7: a block that no session has and that is not free."""
    simulation = Simulation(1)
    server = simulation.network.server
    assert server is not None
    server.core._state.pool.take(0, 1)
    for name in simulation._chaos:
        simulation._chaos[name] = 0.0
    simulation._engine_faults.lose = 0.0
    assert simulation.run(50).violations
