"""`mlxrt check --kernels` passes here, and fails where an operation is wrong or is not the native
one."""

from __future__ import annotations

import io
from collections.abc import Callable

import mlx.core as mx
import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from mlxrt import kernels
from mlxrt.check import kernel_cases
from mlxrt.check.kernels import OVERWRITES, run_kernel_check
from mlxrt.cli import app
from mlxrt.exit_code import ExitCode
from mlxrt.kernels import reference


def check(cases: int = 3) -> tuple[ExitCode, str]:
    """Returns how the check ends and what it prints."""
    out = io.StringIO()
    code = run_kernel_check(Console(file=out, width=140), cases, 5, with_speed=False)
    return code, out.getvalue()


def test_it_passes_here() -> None:
    code, text = check()
    assert code is ExitCode.OK, text
    assert text.count(" ok ") == 17 and "FAILED" not in text
    counts = kernels.counters()
    assert counts["paged_attention"] == 3 * (3 + 1) + 200 + OVERWRITES // 2
    assert counts["kv_write"] == 3 + 200 + OVERWRITES and counts["copy_blocks"] == 3
    assert counts["hold_pools"] == OVERWRITES // 2
    assert counts["sample"] == 5 * 3
    assert counts["norm_rope_write"] == counts["add_rms_norm"] == counts["swiglu"] == 3 * 3


def off_by_a_little(operation: Callable[..., mx.array]) -> Callable[..., mx.array]:
    """Returns the operation with its last row changed beyond a rounding."""

    def changed(*arguments: mx.array, **options: object) -> mx.array:
        out = operation(*arguments, **options)
        return mx.concatenate([out[:-1], out[-1:] * 1.02 + 0.001])

    return changed


@pytest.mark.parametrize(
    "operation",
    [
        "paged_attention", "kv_write", "copy_blocks", "hold_pools", "norm_rope_write",
        "add_rms_norm", "swiglu", "sample",
    ],
)  # fmt: skip
def test_what_is_not_native_fails(operation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, operation, getattr(reference, operation))
    code, text = check()
    assert code is ExitCode.ABI
    failed = [line for line in text.splitlines() if "FAILED" in line]
    assert failed and any(operation in line for line in failed)


def test_a_read_that_a_write_overtakes_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a GPU would give it: the gather sees what the next write brought."""

    def late(arrays: list[mx.array], pools: list[mx.array]) -> list[mx.array]:
        return kernels_hold([array + 1 for array in arrays], pools)

    kernels_hold = kernels.hold_pools
    monkeypatch.setattr(kernels, "hold_pools", late)
    code, text = check()
    (failed,) = [line for line in text.splitlines() if "FAILED" in line]
    assert code is ExitCode.ABI and "overwrites" in failed


def test_a_wrong_row_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "paged_attention", off_by_a_little(kernels.paged_attention))
    code, text = check()
    assert code is ExitCode.ABI and "FAILED AttentionCase(" in text


def test_a_device_without_kernels_ends_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> mx.array:
        raise RuntimeError("no GPU kernels in this build")

    monkeypatch.setattr(kernels, "paged_attention", refuse)
    code, text = check()
    assert code is ExitCode.ABI and "no GPU kernels in this build" in text


def test_the_command_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlxrt.check.kernels.SPEED_CELLS", ((64, 1), (128, 2)))
    result = CliRunner().invoke(app, ["check", "--kernels", "--cases", "1"])
    assert result.exit_code == 0, result.output
    assert "gather / paged" in result.output and "write of one row" in result.output


def test_excess_sees_what_it_should() -> None:
    a = mx.array([1.0, float("nan"), 0.0])
    assert kernel_cases.excess(a, a) == 0.0
    assert kernel_cases.excess(a, mx.array([1.0, 2.0, 0.0])) == float("inf")
    assert kernel_cases.excess(a, a.astype(mx.float16)) == float("inf")
    assert kernel_cases.excess(a, mx.array([1.001, np.nan, 0.0])) > 1.0
