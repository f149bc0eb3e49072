"""`mlxrt check` as a user runs it: a sound checkpoint passes, what is unsound has its exit code."""

from __future__ import annotations

import subprocess
import sys

from mlxrt.check.numbers import TOLERANCE, Comparison


def _check(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "mlxrt", "check", *arguments], capture_output=True, text=True,
        check=False, timeout=300,
    )  # fmt: skip


def test_the_bundled_model_passes_with_its_plan_and_its_numbers() -> None:
    done = _check("--set", "num_blocks=64", "--blas", "reference", "--attention", "gather")
    assert done.returncode == 0, done.stdout + done.stderr
    printed = " ".join(done.stdout.split())
    assert "64 blocks, 1008 positions" in printed
    assert "60 rows of logits, largest difference 0 of" in printed
    assert "best tokens equal 60 of 60" in printed


def test_numbers_that_are_not_mlx_lms_do_not_pass() -> None:
    within = Comparison(60, TOLERANCE["float32"], TOLERANCE["float32"], 59, 60, 1)
    assert within.passed
    assert not Comparison(60, 2e-4, TOLERANCE["float32"], 60, 60, 0).passed
    assert not Comparison(60, 0.0, TOLERANCE["float32"], 59, 60, 0).passed


def test_what_can_not_be_served_has_its_exit_code() -> None:
    absent = _check("--model", "/no/such/folder")
    assert absent.returncode == 3 and "/no/such/folder" in absent.stdout
    large = _check("--set", "num_blocks=100000000")
    assert large.returncode == 5 and "more than the limit" in large.stdout
    assert "Traceback" not in absent.stderr + large.stderr
