"""A hostile client beside a good one: the good one's tokens are the same. Not timed: `mlxrt bench
hostile` does that."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from mlxrt.bench.hostile import KINDS, SEQUENCES, Plan, measure

STEPS = 12
"""Of the good client in each spell, at least, however slow the machine is."""
PEAK_MIB_MAX = 1_000
"""Of the server, whose messages may have 4 MiB, several at once."""


@pytest.mark.parametrize("kind", KINDS)
def test_the_good_clients_tokens_are_the_same(kind: str) -> None:
    cell = measure(kind, Plan(spells=1, spell_s=0.4, spell_steps=STEPS))
    assert cell.steps >= 2 * STEPS and cell.tokens_checked >= cell.steps * SEQUENCES
    assert 0 < cell.server_peak_mib < PEAK_MIB_MAX or not sys.platform.startswith("linux")


def test_the_benchmark_reports_as_json() -> None:
    command = [sys.executable, "-P", "-m", "mlxrt", "bench", "hostile", "--kind", "slow_reader"]
    command += ["--spells", "1", "--seconds", "0.3", "--json", "-"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (cell,) = json.loads(done.stdout)["cells"]
    assert cell["kind"] == "slow_reader" and cell["ratio"] > 0
    command[-1:] = ["-", "--kind", "rude"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and "rude" in done.stderr and "slow_reader" in done.stderr
