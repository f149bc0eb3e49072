"""A hostile client beside a good one: the good one's tokens are the same. Not timed: `mlxrt bench
hostile` does that."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from mlxrt.bench.hostile import KINDS, Plan, measure

PEAK_MIB_MAX = 1_000
"""Of the server, whose messages may have 4 MiB, several at once."""


@pytest.mark.parametrize("kind", KINDS)
def test_the_good_clients_tokens_are_the_same(kind: str) -> None:
    cell = measure(kind, Plan(spells=1, spell_s=0.6))
    assert cell.tokens_checked > 100 and cell.steps > 20
    assert 0 < cell.server_peak_mib < PEAK_MIB_MAX or not sys.platform.startswith("linux")


def test_the_benchmark_reports_as_json() -> None:
    command = [sys.executable, "-P", "-m", "mlxrt", "bench", "hostile", "--kind", "slow_reader"]
    command += ["--spells", "1", "--seconds", "0.3", "--json", "-"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (cell,) = json.loads(done.stdout)["cells"]
    assert cell["kind"] == "slow_reader" and cell["ratio"] > 0
    command[-1:] = ["-", "--kind", "rude"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "rude" in done.stderr and "slow_reader" in done.stderr
