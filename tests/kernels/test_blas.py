"""mlxrt.blas in processes of its own: what is loaded before mlx.core can't be undone."""

from __future__ import annotations

import importlib.util
import os
import platform
import subprocess
import sys

import pytest

HAS_OPENBLAS = (
    sys.platform.startswith("linux")
    and platform.machine() == "x86_64"
    and importlib.util.find_spec("scipy_openblas32") is not None
)
NEEDS_OPENBLAS = pytest.mark.skipif(
    not HAS_OPENBLAS, reason="no scipy-openblas32 for this platform"
)


def run(program: str) -> str:
    result = subprocess.run(
        [sys.executable, "-P", "-c", program],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_module_imports_neither_mlx_nor_the_kernels() -> None:
    assert (
        run(
            "import sys, mlxrt.blas\n"
            "print([m for m in sys.modules if m.startswith(('mlx.', 'mlxrt.kernels'))])"
        )
        == "[]\n"
    )


@NEEDS_OPENBLAS
def test_matrix_products_go_to_openblas() -> None:
    """Products are right with it, complex ones too; what libmlx binds to is the next test."""
    out = run(
        "from mlxrt import blas\n"
        "print(blas.active())\n"
        "text = blas.load_openblas()\n"
        "import mlx.core as mx, numpy as np\n"
        "assert blas.active() == text == blas.load_openblas()\n"
        "print(text)\n"
        "a, b = mx.random.normal((256, 512)), mx.random.normal((512, 1024))\n"
        "np.testing.assert_allclose(np.array(a @ b), np.array(a) @ np.array(b), atol=1e-3)\n"
        "c = (a[:64, :64] + 1j * a[:64, 64:128])\n"
        "np.testing.assert_allclose(np.array(c @ c), np.array(c) @ np.array(c), atol=1e-2)\n"
        "maps = open('/proc/self/maps').read()\n"
        "assert 'libscipy_openblas' in maps and 'libmlxrt_blas' in maps\n"
    )
    before, after = out.splitlines()
    assert before == "the BLAS of MLX's wheel"
    assert after.startswith("OpenBLAS ") and after.endswith(" threads")


@NEEDS_OPENBLAS
def test_libmlx_binds_to_the_shim() -> None:
    """ld.so itself says where it bound libmlx's cblas_sgemm."""
    program = (
        "import sys\n"
        "from mlxrt import blas\n"
        "if sys.argv[1] == 'openblas': blas.load_openblas()\n"
        "import mlx.core as mx\n"
        "x = mx.ones((8, 8)); mx.eval(x @ x)\n"
    )
    for choice, library in (("openblas", "libmlxrt_blas.so"), ("reference", "libblas")):
        result = subprocess.run(
            [sys.executable, "-P", "-c", program, choice],
            env={"LD_DEBUG": "bindings", "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        bound = [
            line
            for line in result.stderr.splitlines()
            if "libmlx.so" in line.split(" to ")[0] and "`cblas_sgemm'" in line
        ]
        assert bound and all(library in line.split(" to ")[1] for line in bound)


@NEEDS_OPENBLAS
def test_too_late_is_an_error() -> None:
    out = run(
        "import mlx.core\n"
        "from mlxrt import blas\n"
        "try: blas.load_openblas()\n"
        "except RuntimeError as error: print(error)\n"
    )
    assert "mlx.core is already imported and bound to the BLAS of MLX's wheel" in out


def test_without_the_package_the_wheels_own_stays() -> None:
    out = run(
        "import sys\n"
        "sys.modules['scipy_openblas32'] = None\n"
        "import importlib.util\n"
        "importlib.util.find_spec = lambda name: None\n"
        "from mlxrt import blas\n"
        "print(blas.load_openblas(), blas.active())\n"
    )
    expected = "Accelerate" if sys.platform == "darwin" else "the BLAS of MLX's wheel"
    assert out == f"None {expected}\n"
