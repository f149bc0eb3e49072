"""The extension as a module: guards, settings, counters, bandwidth."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import pytest

from mlxrt import kernels


def test_built_for_the_mlx_that_is_loaded() -> None:
    assert kernels.built_mlx_version == mx.__version__


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="interposes a symbol by LD_PRELOAD"
)
def test_another_libmlx_is_refused(tmp_path: Path) -> None:
    compiler = shutil.which("cc") or pytest.skip("no C compiler")
    source = tmp_path / "version.c"
    source.write_text('const char* _ZN3mlx4core7versionEv(void) { return "0.32.3"; }\n')
    library = tmp_path / "version.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True)
    result = subprocess.run(
        [sys.executable, "-P", "-c", "import mlxrt.kernels"],
        env={
            **os.environ,
            "LD_PRELOAD": str(library),
            "PYTHONPATH": os.pathsep.join(sys.path),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode != 0
    assert "ImportError: mlxrt was built against MLX" in result.stderr
    assert f"install mlx=={kernels.built_mlx_version}" in result.stderr


def test_levels_by_name() -> None:
    levels = kernels.simd_levels()
    assert levels[-1] == "generic" and kernels.simd_level() == levels[0]
    for level in levels:
        kernels.set_simd_level(level)
        assert kernels.simd_level() == level
    kernels.set_simd_level("auto")
    assert kernels.simd_level() == levels[0]
    with pytest.raises(ValueError, match="level 'sse9' can't run on this machine; it has: "):
        kernels.set_simd_level("sse9")
    assert kernels.simd_level() == levels[0]


def test_thread_counts() -> None:
    kernels.set_num_threads(3)
    assert kernels.num_threads() == 3
    with pytest.raises(ValueError, match="at least 1"):
        kernels.set_num_threads(0)
    assert kernels.num_threads() == 3


def test_building_does_not_count_and_evaluating_does() -> None:
    built = kernels.kv_write(
        mx.zeros((2, 2, 1, 8)),
        mx.zeros((2, 2, 1, 8)),
        mx.ones((1, 1, 8)),
        mx.ones((1, 1, 8)),
        mx.array([0], mx.int64),
    )
    nothing = dict.fromkeys(kernels.counters(), 0)
    assert kernels.counters() == nothing
    mx.eval(built)
    assert kernels.counters() == nothing | {"kv_write": 1}
    kernels.reset_counters()
    assert set(kernels.counters().values()) == {0}


def test_bandwidth_is_a_rate() -> None:
    assert 0.1 < kernels.read_bandwidth(0.02, 2, 1) < 10_000
    with pytest.raises(ValueError, match="must be positive"):
        kernels.read_bandwidth(0.0)


def test_the_stub_names_what_the_module_has() -> None:
    import ast

    from mlxrt.kernels import _native

    stub = Path(kernels.__file__).with_name("_native.pyi")
    body = ast.parse(stub.read_text()).body
    stubbed = {node.name for node in body if isinstance(node, ast.FunctionDef)}
    stubbed |= {
        node.target.id
        for node in body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    assert stubbed == {name for name in dir(_native) if not name.startswith("_")}
    assert stubbed - {"probe"} == set(kernels.__all__) - {"native_module"}
