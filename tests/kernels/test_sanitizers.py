"""The native code that needs neither MLX nor Python, under the sanitizers of the compiler; what is
planted in the check programs must be found."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
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
Built = Callable[[str], Path]

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


@dataclass(frozen=True)
class Program:
    """A program that is built with sanitizers and ends at their first report."""

    sanitizers: tuple[str, ...]
    sources: tuple[str, ...]
    flags: tuple[str, ...] = ()

    def common(self) -> list[str]:
        """The command without its sources."""
        return [
            str(shutil.which("g++")), "-std=c++20", "-O1", "-g1", "-ffp-contract=off",
            "-fno-omit-frame-pointer", "-w", f"-fsanitize={','.join(self.sanitizers)}",
            "-fno-sanitize-recover=all", "-pthread",
        ]  # fmt: skip

    def why_not(self, layout: list[str], folder: Path) -> str:
        """Why none can be built and run here; empty if one can."""
        if shutil.which("g++") is None:
            return "there is no g++ on PATH"
        source, trial = folder / "trial.cpp", folder / f"trial_{self.sanitizers[0]}"
        source.write_text("int main() {}\n")
        done = subprocess.run([*self.common(), source, "-o", trial], capture_output=True, text=True)
        if done.returncode != 0:
            return f"g++ has no runtime library for {self.sanitizers}: {done.stderr[-300:]}"
        nothing = run(layout, trial)
        if nothing.returncode != 0:
            return f"{self.sanitizers} can't run on this system: {nothing.stderr[-300:]}"
        return ""

    def build(self, output: Path) -> Path:
        """Compiles it from native/."""
        command = [*self.common(), "-I.", "-Iinclude", *self.flags, *self.sources]
        subprocess.run([*command, "-o", output], cwd=NATIVE, check=True, timeout=TIMEOUT_S)
        return output


def run(layout: list[str], program: Path) -> subprocess.CompletedProcess[str]:
    """Runs a check program; a sanitizer's report ends it with 99."""
    report = "exitcode=99:halt_on_error=1"
    environment = {"ASAN_OPTIONS": report, "TSAN_OPTIONS": report, "UBSAN_OPTIONS": report}
    return subprocess.run(
        [*layout, program], env={**os.environ, **environment}, capture_output=True,
        text=True, timeout=TIMEOUT_S,
    )  # fmt: skip


def kernel_check(level: str, *flags: str) -> Program:
    """The kernel check for one kernel set under ASan and UBSan."""
    sources = (
        "tests/kernel_check.cpp", "tests/fused_check.cpp", "simd/rows.cpp",
        f"simd/attention_{level}.cpp",
    )  # fmt: skip
    return Program(ASAN, sources, (f"-DKERNEL_SET={level}_kernels", *KERNEL_FLAGS[level], *flags))


def thread_check(*flags: str) -> Program:
    """The thread check under TSan."""
    sources = (
        "tests/thread_check.cpp", "src/thread_pool.cpp", "simd/rows.cpp",
        "simd/attention_generic.cpp",
    )  # fmt: skip
    return Program(TSAN, sources, flags)


PROGRAMS = {
    "planted read": kernel_check("generic", "-DPLANT_OUT_OF_RANGE_READ"),
    "planted race": thread_check("-DPLANT_DATA_RACE"),
    "threads": thread_check(),
    **{level: kernel_check(level) for level in levels()},
}


@pytest.fixture(scope="module")
def built(
    fixed_layout: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Built:
    """Returns a program by name; all are built first, two at a time."""
    folder = tmp_path_factory.mktemp("sanitized")
    reasons = {each: Program(each, ()).why_not(fixed_layout, folder) for each in (ASAN, TSAN)}
    with ThreadPoolExecutor(2) as pool:
        programs = {
            name: pool.submit(program.build, folder / name.replace(" ", "_"))
            for name, program in PROGRAMS.items()
            if not reasons[program.sanitizers]
        }

    def get(name: str) -> Path:
        if reason := reasons[PROGRAMS[name].sanitizers]:
            pytest.skip(reason)
        return programs[name].result()

    return get


@pytest.mark.parametrize("level", levels())
def test_kernels_under_asan_and_ubsan(
    fixed_layout: list[str], built: Built, level: str
) -> None:
    result = run(fixed_layout, built(level))
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.startswith(f"{level}: 300 cases")
    assert not result.stderr


def test_a_planted_out_of_range_read_is_found(fixed_layout: list[str], built: Built) -> None:
    result = run(fixed_layout, built("planted read"))
    assert result.returncode == 99
    assert "AddressSanitizer: heap-buffer-overflow" in result.stderr
    assert "READ of size" in result.stderr


def test_pool_and_concurrent_callers_under_tsan(fixed_layout: list[str], built: Built) -> None:
    result = run(fixed_layout, built("threads"))
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout == "1440 tasks, 0 wrong\n"
    assert not result.stderr


def test_a_planted_data_race_is_found(fixed_layout: list[str], built: Built) -> None:
    result = run(fixed_layout, built("planted race"))
    assert result.returncode == 99
    assert "ThreadSanitizer: data race" in result.stderr
