"""The CUDA module as CMake builds it, with NVIDIA's compiler and the real mlx-cuda wheel, both from
pip's index: every kernel compiles, and every symbol is found. Nothing is run: that needs a GPU.

The kernels are compiled to PTX alone, which takes a third of the time that machine code takes.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from emulator.ops import plan

from mlxrt.kernels import built_mlx_version

ROOT = Path(__file__).resolve().parents[2]
NATIVE = ROOT / "native"
CACHE = ROOT / "build" / "cuda"
WHEELS = (
    f"mlx-cuda-13=={built_mlx_version}", "nvidia-cuda-nvcc==13.0.88", "nvidia-nvvm==13.0.88",
    "nvidia-cuda-crt==13.0.88", "nvidia-cuda-runtime==13.0.96", "nvidia-cuda-cccl==13.0.85",
)  # fmt: skip
TIMED = {
    "decode_attention": ["attention_element2_head_dim128"],
    "sample": ["sample_parts_element2", "sample_element2"],
    "row_ops": ["fused_element2"],
}
"""Programs of native/cuda/bench, and what they time."""
UNEXPORTED = """
#include "mlx/backend/cuda/allocator.h"
bool unexported() { return &mlx::core::cu::allocator() != nullptr; }
"""

pytestmark = [
    pytest.mark.timeout(1500),
    pytest.mark.skipif(
        not sys.platform.startswith("linux") or platform.machine() != "x86_64",
        reason="the wheels are those for Linux on x86-64",
    ),
]


def run(*command: str | Path, **environment: str) -> str:
    """Runs a command that must succeed; CMake and Ninja are beside Python. Returns its output."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    result = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PATH": path, **environment}
    )
    assert not result.returncode, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout


def unpacked(wheel: str) -> None:
    """Gets a wheel from pip's index into the cache, unless it is there."""
    done = CACHE / f"{wheel}.done"
    if done.exists():
        return
    place = CACHE / "wheels" / wheel
    command = [
        sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:",
        "--platform", "manylinux_2_35_x86_64", "--platform", "manylinux2014_x86_64",
        "--platform", "manylinux2010_x86_64", "--dest", str(place), wheel,
    ]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode and not os.environ.get("CI"):
        pytest.skip(f"no {wheel}: {result.stderr[-300:]}")
    assert not result.returncode, result.stderr
    (path,) = place.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        archive.extractall(CACHE)
    path.unlink()
    done.touch()


@pytest.fixture(scope="module")
def toolkit() -> Path:
    """Returns the folder of NVIDIA's compiler and headers."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(unpacked, WHEELS))
    folder = CACHE / "nvidia" / "cu13"
    for program in [*(folder / "bin").iterdir(), *(folder / "nvvm" / "bin").iterdir()]:
        program.chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def build(toolkit: Path) -> Path:
    """Builds the module and returns the folder of what was built; a second run in one checkout
    compiles what has changed."""
    folder = CACHE / f"build-{sys.version_info.major}.{sys.version_info.minor}"
    run(
        "cmake", "-S", ROOT, "-B", folder, "-G", "Ninja", f"-DPython_EXECUTABLE={sys.executable}",
        "-DMLXRT_CUDA=ON", "-DMLXRT_PRECOMPILE=ON", f"-DMLXRT_MLX_DIR={CACHE / 'mlx'}",
        "-DMLXRT_CUDA_TARGETS=90-virtual",
        f"-DMLXRT_NVCC={toolkit / 'bin' / 'nvcc'}", CUDA_HOME=str(toolkit),
    )  # fmt: skip
    targets = ("_native_cuda", *(f"bench_{name}" for name in TIMED))
    run("cmake", "--build", folder, "--target", *targets, "-j2")
    return folder / "native"


def module_of(build: Path) -> Path:
    """Returns the built module."""
    (module,) = build.glob("_native_cuda*.so")
    return module


def names(library: Path, what: str, *, dynamic: bool = True) -> set[str]:
    """Returns the symbols that a file defines, or needs (weak ones left out)."""
    flags = ["-D"] if dynamic else []
    lines = run("nm", *flags, f"--{what}-only", library).splitlines()
    words = [line.split() for line in lines]
    kinds = {"U"} if what == "undefined" else set("TWVBDRuiAN")
    return {w[-1].split("@")[0] for w in words if len(w) > 1 and w[-2] in kinds}


def not_found(needed: set[str]) -> set[str]:
    """Returns those of the symbols that MLX's library would have to have and has not."""
    exported = names(CACHE / "mlx" / "lib" / "libmlx.so", "defined")
    return {n for n in needed if n.startswith(("_ZN3mlx", "_ZNK3mlx", "_ZTIN3mlx"))} - exported


def test_every_symbol_is_found(build: Path) -> None:
    needed = names(module_of(build), "undefined")
    assert any("CommandEncoder19add_kernel_node_raw" in name for name in needed)
    assert not not_found(needed)
    # What is not MLX's is the C++ library's, the C library's or Python's; none is CUDA's.
    loaded = run("readelf", "-d", module_of(build))
    libraries = set(re.findall(r"NEEDED.*\[(\w+)", loaded))
    assert libraries <= {"libmlx", "libstdc", "libm", "libgcc_s", "libc", "ld"}
    own = {n for n in needed if "mlxrt" in n or n.startswith("cu")}
    assert not own


def test_a_symbol_that_mlx_does_not_export_is_missed(toolkit: Path, tmp_path: Path) -> None:
    source, compiled = tmp_path / "unexported.cpp", tmp_path / "unexported.o"
    source.write_text(UNEXPORTED)
    include = (CACHE / "mlx" / "include", toolkit / "include", NATIVE / "cuda" / "shim")
    run("g++", "-std=c++20", "-c", *(f"-I{path}" for path in include), source, "-o", compiled)
    missing = not_found(names(compiled, "undefined", dynamic=False))
    assert any("allocator" in name for name in missing)


def test_the_kernels_are_inside(build: Path) -> None:
    module = module_of(build).read_bytes()
    fatbins = sorted(build.glob("*.fatbin"))
    attention = [path for path in fatbins if path.name.startswith("attention_")]
    assert len(attention) == 21  # head sizes and types
    others = {path.stem for path in fatbins} - {path.stem for path in attention}
    assert others == {path.stem for path in (NATIVE / "cuda").glob("*.cu")}
    for fatbin in fatbins:
        assert fatbin.stat().st_size > 1000 and fatbin.read_bytes() in module, fatbin.name


@pytest.mark.parametrize("program", TIMED)
def test_what_times_kernels_has_the_same_ones(program: str, build: Path) -> None:
    contents = (build / program).read_bytes()
    for kernels in TIMED[program]:
        assert (build / f"{kernels}.fatbin").read_bytes() in contents


def test_the_host_names_the_kernels_that_move(toolkit: Path, tmp_path: Path) -> None:
    ptx = tmp_path / "moving.ptx"
    run(
        toolkit / "bin" / "nvcc", "-std=c++17", "-ptx", "-arch=compute_90",
        "-I", NATIVE / "kernels" / "gpu", NATIVE / "cuda" / "moving.cu", "-o", ptx,
    )  # fmt: skip
    entries = set(re.findall(r"\.entry (\w+)", ptx.read_text()))
    host = "".join(path.read_text() for path in (NATIVE / "cuda").glob("*.cpp"))
    asked_for = set(re.findall(r'moving(?:_kernels|"),\s*"(\w+)"', host))
    assert len(asked_for) >= 3 and asked_for <= entries
    assert entries <= set(re.findall(r'"(\w+)"', host))


@pytest.mark.parametrize("element", [0, 1, 2])
def test_the_fused_kernels_are_those_that_are_planned(
    element: int, toolkit: Path, tmp_path: Path
) -> None:
    ptx = tmp_path / "fused.ptx"
    run(
        toolkit / "bin" / "nvcc", "-std=c++17", "-ptx", "-arch=compute_90",
        "-I", NATIVE / "kernels" / "gpu", NATIVE / "cuda" / f"fused_element{element}.cu", "-o", ptx,
    )  # fmt: skip
    rows = [("element", element), ("num_rows", 1), ("size", 64)]
    heads = [("pool_element", element), ("num_q_heads", 1), ("head_dim", 64), ("pairs", 32)]
    plans = [plan("add_rms_norm", *rows), plan("swiglu", *rows),
             plan("norm_rope_write", *rows, *heads)]  # fmt: skip
    planned = {dispatch.kernel for what in plans for dispatch in what.dispatches}
    assert planned == set(re.findall(r"\.entry (\w+)", ptx.read_text())) and len(planned) == 3


@pytest.mark.parametrize("what", ["sample", "sample_parts"])
@pytest.mark.parametrize("element", [0, 1, 2])
def test_the_sampling_kernels_are_those_that_are_planned(
    element: int, what: str, toolkit: Path, tmp_path: Path
) -> None:
    name, ptx = f"{what}_element{element}", tmp_path / "sample.ptx"
    run(
        toolkit / "bin" / "nvcc", "-std=c++17", "-ptx", "-arch=compute_90",
        "-I", NATIVE / "kernels" / "gpu", NATIVE / "cuda" / f"{name}.cu", "-o", ptx,
    )  # fmt: skip
    shape = [("element", element), ("num_rows", 1), ("vocabulary", 9), ("rule_rows", 1)]
    planned = {d.kernel for d in plan("sample", *shape).dispatches if d.library == name}
    text = ptx.read_text()
    assert planned == set(re.findall(r"\.entry (\w+)", text)) and planned
    # Weights are the reference's to the bit: no product is fused with a sum.
    assert "fma.rn.f32" not in text and "mul.rn.f32" in text
