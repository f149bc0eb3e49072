"""Which BLAS computes MLX's float32 and float64 matrix products on the CPU.

MLX's Linux wheel for x86-64 brings the reference BLAS, one scalar thread. PyPI's `scipy-openblas32`
brings OpenBLAS under names with a prefix, which a small library beside mlxrt's extension gives
MLX's names. Whatever is in the process's global scope when libmlx is loaded wins; so it must be
loaded before `mlx.core`, and this module imports neither MLX nor mlxrt.kernels.

Source: the ELF rules of symbol lookup (global scope before the library's own dependencies).
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys
from pathlib import Path

_SHIM = Path(__file__).parent / "kernels" / "libmlxrt_blas.so"
_PACKAGE = "scipy_openblas32"


class _DlInfo(ctypes.Structure):
    """`Dl_info` of dlfcn.h."""

    _fields_ = [
        ("dli_fname", ctypes.c_char_p),
        ("dli_fbase", ctypes.c_void_p),
        ("dli_sname", ctypes.c_char_p),
        ("dli_saddr", ctypes.c_void_p),
    ]


def load_openblas() -> str | None:
    """Makes MLX use OpenBLAS and returns its description, or None if this installation has none.

    None means that the wheel's own BLAS stays in use: the platform is not Linux on x86-64, or the
    package `scipy-openblas32` (the extra `cpu`) is not installed; `active()` says which it is.
    Calling it again changes nothing. Call it on the main thread, before `mlx.core` is imported.

    Raises:
        RuntimeError: `mlx.core` is already imported, so that its BLAS is bound.
    """
    if _provider() == str(_SHIM):
        return active()
    if "mlx.core" in sys.modules:
        raise RuntimeError(
            "OpenBLAS can't be loaded: mlx.core is already imported and bound to "
            f"{active()}; call load_openblas() before anything imports mlx.core"
        )
    library = _openblas_library()
    if library is None or not _SHIM.exists():
        return None
    openblas = ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
    if "OPENBLAS_NUM_THREADS" not in os.environ:
        openblas.scipy_openblas_set_num_threads(default_threads())
    ctypes.CDLL(str(_SHIM), ctypes.RTLD_GLOBAL)
    return active()


def default_threads() -> int:
    """Returns OpenBLAS's threads where OPENBLAS_NUM_THREADS is unset: all cores but one, or one.

    Its threads spin while they wait for each other. On two cores a second one that must share its
    core with the server or its client made a product of [8, 512] and [512, 1536] 90 times slower
    (0.36 to 32 ms, medians).
    """
    return max(1, len(os.sched_getaffinity(0)) - 1)


def active() -> str:
    """Returns the BLAS that MLX uses, or would use if `mlx.core` were imported now."""
    if sys.platform == "darwin":
        return "Accelerate"
    provider = _provider()
    if provider == str(_SHIM):
        return _openblas_description()
    if provider is not None:
        return provider
    return "the BLAS of MLX's wheel"


def _provider() -> str | None:
    """The library whose cblas_sgemm the global scope holds, or None."""
    if not sys.platform.startswith("linux"):
        return None
    process = ctypes.CDLL(None)
    if not hasattr(process, "cblas_sgemm"):
        return None
    info = _DlInfo()
    address = ctypes.cast(process.cblas_sgemm, ctypes.c_void_p)
    if not process.dladdr(address, ctypes.byref(info)) or info.dli_fname is None:
        return "an unknown BLAS in the global scope"
    return os.fsdecode(info.dli_fname)


def _openblas_library() -> Path | None:
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        return None
    libraries = sorted((Path(spec.origin).parent / "lib").glob("libscipy_openblas*.so"))
    return libraries[0] if libraries else None


def _openblas_description() -> str:
    process = ctypes.CDLL(None)
    process.scipy_openblas_get_config.restype = ctypes.c_char_p
    config = process.scipy_openblas_get_config().decode().strip()
    threads = process.scipy_openblas_get_num_threads()
    return f"{config}, {threads} threads"
