"""A short coverage-guided run of the step's five forms; `coverage_guided.py` is the long one."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("atheris", reason="the extra `fuzz` brings it, where it has a wheel")

SCRIPT = Path(__file__).parent / "coverage_guided.py"
RUNS = 4_000


@pytest.mark.parametrize("rpc", ["Step", "SampleStep", "Execute", "Prefill", "Decode"])
def test_guided_inputs_find_nothing(rpc: str) -> None:
    command = [sys.executable, str(SCRIPT), rpc, f"-runs={RUNS}", "-seed=1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"Done {RUNS} runs" in done.stderr
    coverage = [int(found) for found in re.findall(r"cov: (\d+)", done.stderr)]
    assert coverage[-1] > coverage[0] > 100, "the guidance saw our code"


CANARY = """
import sys
sys.path.insert(0, {folder!r})
import coverage_guided
from mlxrt.core import step_calls
def numbered(reason, expected, message):
    raise RuntimeError("the canary")
assert callable(step_calls.numbered)
step_calls.numbered = numbered
sys.argv = ["coverage_guided.py", "Step", "-runs=100000", "-seed=1", "-artifact_prefix={artifacts}"]
coverage_guided.main()
"""


def test_a_planted_defect_is_found(tmp_path: Path) -> None:
    code = CANARY.format(folder=str(SCRIPT.parent), artifacts=f"{tmp_path}/")
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300
    )
    assert done.returncode != 0
    assert "the canary" in done.stdout + done.stderr
    assert list(tmp_path.iterdir()), "the input is kept"
