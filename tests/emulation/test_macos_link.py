"""The Metal build of the extension, cross-compiled for macOS and linked with libmlx of the real
mlx-metal wheel: every symbol is found, and one that MLX does not export is missed.

Python and its binding are left out. The wheel comes from pip's index, or from MLXRT_METAL_WHEEL.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from emulator.address_spaces import has_clang

from mlxrt.kernels import built_mlx_version

NATIVE = Path(__file__).resolve().parents[2] / "native"
STUBS = NATIVE / "tests" / "macos_stubs"
CACHE = NATIVE.parent / "build" / "macos"
SOURCES = (
    "metal/eval_gpu", "metal/encode", "metal/plan", "metal/text", "kernels/gpu/launch",
    "src/gpu_shape", "src/hold_pools", "cpu/hold_pools", "src/counters", "src/thread_pool",
    "src/kv_write", "src/copy_blocks", "src/paged_attention",
    "src/norm_rope_write", "src/row_ops", "cpu/norm_rope_write", "cpu/row_ops",
    "src/sample", "cpu/sample",
    "cpu/kv_write", "cpu/copy_blocks", "cpu/paged_attention", "cpu/attention_plan",
    "cpu/bandwidth", "simd/dispatch", "simd/rows", "simd/attention_generic",
    "simd/attention_neon",
)  # fmt: skip
ZIG = (sys.executable, "-m", "ziglang", "c++", "-target", "aarch64-macos.14.0")
PRECOMPILED = NATIVE / "src" / "mlx_headers.h"
"""Read once for all files but those of metal/: the build for Linux shows that the others include
what they need."""
UNEXPORTED = """
#include "mlx/backend/metal/device.h"
bool unexported() { return mlx::core::metal::is_nax_available(); }
"""

pytestmark = [
    pytest.mark.timeout(1500),  # ziglang builds its standard library when it first links
    pytest.mark.skipif(not has_clang(), reason="the cross-compiler comes with ziglang"),
]


@pytest.fixture(scope="module")
def mlx_folder() -> Path:
    """Returns the wheel's folder of headers and libraries."""
    folder = CACHE / f"mlx-metal-{built_mlx_version}"
    if (folder / "mlx" / "lib" / "libmlx.dylib").exists():
        return folder / "mlx"
    wheel = os.environ.get("MLXRT_METAL_WHEEL")
    if wheel is None:
        command = [
            sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:",
            "--platform", "macosx_14_0_arm64", "--dest", str(CACHE),
            f"mlx-metal=={built_mlx_version}",
        ]  # fmt: skip
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode and not os.environ.get("CI"):
            pytest.skip(f"no mlx-metal wheel: {result.stderr[-300:]}")
        assert not result.returncode, result.stderr
        (path,) = CACHE.glob(f"mlx_metal-{built_mlx_version}-*.whl")
        wheel = str(path)
    with zipfile.ZipFile(wheel) as archive:
        wanted = [n for n in archive.namelist() if "/include/" in n or n.endswith(".dylib")]
        archive.extractall(folder, wanted)
    return folder / "mlx"


def embedded_digest() -> str:
    """Returns a digest of the kernels' sources, which ziglang's cache does not know of: they are
    included by the assembler."""
    files = sorted((NATIVE / "kernels" / "gpu").glob("*.h"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def compile_one(source: Path, mlx: Path, target: Path, *options: str) -> Path:
    """Compiles a file for macOS."""
    include = [mlx / "include", mlx / "include" / "metal_cpp", STUBS, NATIVE, NATIVE / "include"]
    defines = [
        "_METAL_", "MLXRT_NEON", f'MLXRT_GPU_SOURCE_FOLDER="{NATIVE / "kernels/gpu"}"',
        f"EMBEDDED={embedded_digest()}",
    ]  # fmt: skip
    command = [
        *ZIG, "-std=c++20", "-O0", "-g0", "-c", *(f"-I{path}" for path in include),
        *(f"-D{define}" for define in defines), *options, str(source), "-o", str(target),
    ]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True)
    assert not result.returncode, result.stderr
    return target


def link(objects: list[Path], mlx: Path, target: Path) -> subprocess.CompletedProcess[str]:
    """Links a library for macOS; the linker knows libmlx, the system's C and C++, and one function
    of the Objective-C runtime."""
    libraries = [mlx / "lib" / "libmlx.dylib", STUBS / "libobjc.tbd"]
    command = [*ZIG, "-shared", "-o", *map(str, [target, *objects, *libraries])]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture(scope="module")
def objects(mlx_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Returns the compiled files of the extension."""
    folder = tmp_path_factory.mktemp("macos")
    read = compile_one(PRECOMPILED, mlx_folder, folder / "headers.pch", "-x", "c++-header")

    def one(name: str) -> Path:
        options = () if name.startswith("metal/") else ("-include-pch", str(read))
        target = folder / f"{name.replace('/', '_')}.o"
        return compile_one(NATIVE / f"{name}.cpp", mlx_folder, target, *options)

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(one, SOURCES))


def test_every_symbol_is_found(objects: list[Path], mlx_folder: Path, tmp_path: Path) -> None:
    library = tmp_path / "native.dylib"
    result = link(objects, mlx_folder, library)
    assert not result.returncode, result.stderr
    linked = library.read_bytes()
    assert b"@rpath/libmlx.dylib" in linked
    assert b"_ZN3mlx4core5metal14CommandEncoder15set_input_array" in linked


def test_the_texts_of_the_kernels_are_inside(objects: list[Path]) -> None:
    text = next(path for path in objects if path.name == "metal_text.o").read_bytes()
    for file in ("attention.h", "kv_write.h", "norm_rope_write.h", "swiglu.h", "dialect.h"):
        assert (NATIVE / "kernels" / "gpu" / file).read_bytes() in text


def test_a_symbol_that_mlx_does_not_export_is_missed(
    objects: list[Path], mlx_folder: Path, tmp_path: Path
) -> None:
    source = tmp_path / "unexported.cpp"
    source.write_text(UNEXPORTED)
    planted = compile_one(source, mlx_folder, tmp_path / "unexported.o")
    result = link([*objects, planted], mlx_folder, tmp_path / "native.dylib")
    assert result.returncode and "is_nax_available" in result.stderr


def test_cmake_builds_the_same_files() -> None:
    """What is linked here is what a Mac builds."""
    listed = (NATIVE / "CMakeLists.txt").read_text()
    for name in SOURCES:
        assert f"{name}.cpp" in listed, name
