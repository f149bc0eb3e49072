"""The native code that needs neither MLX nor Python, under the sanitizers of the compiler; what is
planted in the check programs must be found."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

NATIVE = Path(__file__).resolve().parents[2] / "native"
KERNEL_FLAGS = {
    "generic": [],
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "avx512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mf16c"],
}
TIMEOUT_S = 400
ASAN = ("address", "undefined")
TSAN = ("thread",)

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="the sanitizers' flags are those of g++ on Linux"
)


def levels() -> list[str]:
    """Returns the kernel sets that this machine can run."""
    cpu = Path("/proc/cpuinfo")
    flags = set(cpu.read_text().split()) if cpu.exists() else set()
    wanted = {
        "generic": set[str](),
        "avx2": {"avx2", "fma", "f16c"},
        "avx512": {"avx512f", "avx512bw", "avx512dq", "avx512vl", "fma", "f16c"},
    }
    return [name for name, needed in wanted.items() if needed <= flags]


def compile_with(
    sanitizers: tuple[str, ...],
    layout: list[str],
    output: Path,
    sources: list[str],
    *flags: str,
) -> None:
    """Builds sources of native/ into a program that ends at the first report."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("there is no g++ on PATH")
    common = [
        compiler, "-std=c++20", "-O1", "-g1", "-ffp-contract=off", "-fno-omit-frame-pointer", "-w",
        f"-fsanitize={','.join(sanitizers)}", "-fno-sanitize-recover=all", "-pthread",
    ]  # fmt: skip
    trial = output.with_suffix(".cpp")
    trial.write_text("int main() {}\n")
    runtime = subprocess.run([*common, trial, "-o", output], capture_output=True, text=True)
    if runtime.returncode != 0:
        pytest.skip(f"g++ has no runtime library for {sanitizers}: {runtime.stderr[-300:]}")
    nothing = run(layout, output)
    if nothing.returncode != 0:
        pytest.skip(f"{sanitizers} can't run on this system: {nothing.stderr[-300:]}")
    command = [*common, "-I.", "-Iinclude", *flags, *sources, "-o", str(output)]
    subprocess.run(command, cwd=NATIVE, check=True, timeout=TIMEOUT_S)


def run(layout: list[str], program: Path) -> subprocess.CompletedProcess[str]:
    """Runs a check program; a sanitizer's report ends it with 99."""
    report = "exitcode=99:halt_on_error=1"
    environment = {"ASAN_OPTIONS": report, "TSAN_OPTIONS": report, "UBSAN_OPTIONS": report}
    return subprocess.run(
        [*layout, program], env={**os.environ, **environment}, capture_output=True,
        text=True, timeout=TIMEOUT_S,
    )  # fmt: skip


def kernel_check(
    layout: list[str], level: str, output: Path, *flags: str
) -> subprocess.CompletedProcess[str]:
    """Builds and runs the kernel check for one kernel set under ASan and UBSan."""
    sources = [
        "tests/kernel_check.cpp", "tests/fused_check.cpp", "simd/rows.cpp",
        f"simd/attention_{level}.cpp",
    ]  # fmt: skip
    wanted = [f"-DKERNEL_SET={level}_kernels", *KERNEL_FLAGS[level], *flags]
    compile_with(ASAN, layout, output, sources, *wanted)
    return run(layout, output)


def thread_check(
    layout: list[str], output: Path, *flags: str
) -> subprocess.CompletedProcess[str]:
    """Builds and runs the thread check under TSan."""
    sources = [
        "tests/thread_check.cpp", "src/thread_pool.cpp", "simd/rows.cpp",
        "simd/attention_generic.cpp",
    ]  # fmt: skip
    compile_with(TSAN, layout, output, sources, *flags)
    return run(layout, output)


@pytest.mark.parametrize("level", levels())
def test_kernels_under_asan_and_ubsan(
    fixed_layout: list[str], level: str, tmp_path: Path
) -> None:
    result = kernel_check(fixed_layout, level, tmp_path / "kernel_check")
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.startswith(f"{level}: 300 cases")
    assert not result.stderr


def test_a_planted_out_of_range_read_is_found(fixed_layout: list[str], tmp_path: Path) -> None:
    planted = "-DPLANT_OUT_OF_RANGE_READ"
    result = kernel_check(fixed_layout, "generic", tmp_path / "planted", planted)
    assert result.returncode == 99
    assert "AddressSanitizer: heap-buffer-overflow" in result.stderr
    assert "READ of size" in result.stderr


def test_pool_and_concurrent_callers_under_tsan(fixed_layout: list[str], tmp_path: Path) -> None:
    result = thread_check(fixed_layout, tmp_path / "thread_check")
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout == "1440 tasks, 0 wrong\n"
    assert not result.stderr


def test_a_planted_data_race_is_found(fixed_layout: list[str], tmp_path: Path) -> None:
    result = thread_check(fixed_layout, tmp_path / "planted", "-DPLANT_DATA_RACE")
    assert result.returncode == 99
    assert "ThreadSanitizer: data race" in result.stderr
