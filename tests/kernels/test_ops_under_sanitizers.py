"""The extension itself under ASan + UBSan, and every test of its ops run against that build.

MLX's own library is as its wheel brings it: what it allocates is watched, its code is not. The
build takes a minute and a half of one core.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OPS = (
    "kv_write", "copy_blocks", "paged_attention", "fused_ops", "compiled", "refusals", "invariance",
    "sample",
)  # fmt: skip
LIBRARIES = ("libasan.so", "libubsan.so", "libstdc++.so")

pytestmark = [
    pytest.mark.skipif(
        not sys.platform.startswith("linux"), reason="libraries are preloaded as Linux does it"
    ),
    pytest.mark.timeout(3_600),
]


Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Builds the package with sanitizers; answers the environment that uses it."""
    compiler, cmake = shutil.which("g++"), shutil.which("cmake")
    if compiler is None or cmake is None or not (ROOT / "CMakeLists.txt").exists():
        pytest.skip("g++, cmake and the source tree are needed")
    found = [
        subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True)
        for name in LIBRARIES
    ]
    paths = [result.stdout.strip() for result in found]
    if not all(os.path.isabs(path) for path in paths):
        pytest.skip(f"g++ lacks one of {LIBRARIES}")
    folder = tmp_path_factory.mktemp("sanitized")
    build = [cmake, "-S", str(ROOT), "-B", str(folder / "build"), "-DCMAKE_BUILD_TYPE=None"]
    build += ["-DUSE_ASAN=ON", "-DUSE_UBSAN=ON", "-DCMAKE_CXX_FLAGS=-O1", "-DMLXRT_PRECOMPILE=ON"]
    build += [f"-DPython_EXECUTABLE={sys.executable}"]
    for command in (build, [cmake, "--build", str(folder / "build"), "-j2"]):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    package = Path(__import__("mlxrt").__file__).parent
    shutil.copytree(package, folder / "mlxrt", ignore=shutil.ignore_patterns("*.so", "*.dylib"))
    for library in (folder / "build").rglob("*.so"):
        shutil.copy(library, folder / "mlxrt" / "kernels")
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    return {
        **os.environ,
        "PYTHONPATH": path,
        "LD_PRELOAD": " ".join(paths),
        "ASAN_OPTIONS": "detect_leaks=0:halt_on_error=1:exitcode=99",
        "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1:exitcode=99",
    }


@pytest.fixture(scope="module")
def run(environment: dict[str, str], fixed_layout: list[str]) -> Run:
    """Returns what runs Python with the sanitized package."""

    def start(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [*fixed_layout, sys.executable, *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    return start


def test_the_ops_give_no_report(run: Run) -> None:
    where = run("-c", "from mlxrt.kernels import _native; print(_native.__file__)")
    module = Path(where.stdout.strip())
    assert b"__asan_report_load" in module.read_bytes(), where.stderr
    assert b"__ubsan_handle" in module.read_bytes()
    tests = [str(Path(__file__).parent / f"test_{name}.py") for name in OPS]
    done = run("-m", "pytest", "-q", "-p", "no:cacheprovider", *tests)
    report = done.stdout[-3000:] + done.stderr[-3000:]
    assert done.returncode == 0, report
    assert "AddressSanitizer" not in report and "runtime error" not in report
    passed = int(done.stdout.rstrip().splitlines()[-1].split()[0])
    assert passed > 50


def test_a_planted_overflow_is_found(run: Run) -> None:
    """The sanitizer watches the process that the ops run in."""
    code = (
        "import ctypes\nfrom mlxrt.kernels import _native\nlibc = ctypes.CDLL(None)\n"
        "libc.malloc.restype = ctypes.c_void_p\n"
        "libc.memset(ctypes.c_void_p(libc.malloc(10)), 0, 11)"
    )
    done = run("-c", code)
    assert done.returncode == 99
    assert "heap-buffer-overflow" in done.stderr
