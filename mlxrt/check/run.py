"""Runs the check and prints what it finds."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mlxrt.config import Settings
from mlxrt.errors import MlxrtError
from mlxrt.exit_code import ExitCode
from mlxrt.launch import make_engine
from mlxrt.telemetry import configure_logs
from mlxrt.testing.local_runner import LocalRunner
from mlxrt.versions import installed_versions


def run_check(settings: Settings, console: Console) -> ExitCode:
    """Checks environment, ABI, memory plan and numbers, in this order; stops at the first that
    fails.

    Returns:
        OK; ABI where the extension can't be loaded; MODEL or MEMORY where the checkpoint can't be
        served or its numbers are not mlx-lm's.
    """
    configure_logs(settings.log_format, "warning")
    engine = make_engine(settings, poison_pool=True)
    console.print(_environment())
    try:
        from mlxrt import kernels
    except ImportError as error:
        console.print(f"ABI: {error}", style="red", markup=False)
        return ExitCode.ABI
    console.print(
        f"ABI: the extension was built for MLX {kernels.built_mlx_version}, and that is what is "
        f"loaded; kernels use {kernels.simd_level()}"
    )
    try:
        runner = LocalRunner(engine, settings.limits.to_limits())
    except MlxrtError as error:
        console.print(f"model: {error.message}", style="red", markup=False)
        return ExitCode(int(error.metadata.get("exit_code", ExitCode.MODEL)))
    try:
        return _check_model(runner, settings, console)
    finally:
        runner.close()


def _check_model(runner: LocalRunner, settings: Settings, console: Console) -> ExitCode:
    from mlxrt.check.numbers import compare
    from mlxrt.models.folder import resolve_folder

    facts, description = runner.facts, runner.description
    console.print(
        f"model: {facts.model_name} ({facts.model_type}) on {description.device}, attention "
        f"{description.attention_path}, BLAS {description.blas or 'none'}"
    )
    console.print(runner.memory_table(), markup=False, highlight=False)
    dtype: str = settings.dtype
    if dtype == "auto":
        dtype = "float32" if description.device.startswith("cpu") else "stored"
    comparison = compare(runner, Path(resolve_folder(settings.model)), dtype, settings.blas)
    console.print(
        f"numbers against mlx-lm alone: {comparison.compared} rows of logits, largest difference "
        f"{comparison.difference:.2g} of the largest logit (allowed {comparison.tolerance:g}); "
        f"best tokens equal {comparison.tokens_equal} of {comparison.tokens}, "
        f"{comparison.excused} excused as ties",
        style="green" if comparison.passed else "red",
    )
    return ExitCode.OK if comparison.passed else ExitCode.MODEL


def _environment() -> Table:
    table = Table("what", "which", show_header=False)
    table.add_row("system", f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores")
    table.add_row("Python", platform.python_version())
    for name, version in installed_versions().items():
        table.add_row(name, version)
    return table
