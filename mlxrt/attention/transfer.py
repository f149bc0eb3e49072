"""Small arrays between host and device: through pinned memory where the extension has it, which is
on CUDA; elsewhere the way of MLX.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray


def _extension() -> Any:
    """The extension's module; None where it can't be loaded, and the gather path alone runs."""
    try:
        from mlxrt import kernels
    except ImportError:
        return None
    return kernels.native_module


Numbers = NDArray[np.int32] | NDArray[np.int64] | NDArray[np.float32]
_native = _extension()
HAS_TRANSFERS: bool = hasattr(_native, "upload")
"""Whether pinned memory is used."""


def to_device(arrays: Sequence[Numbers]) -> list[mx.array]:
    """The same numbers on the device; read before this returns."""
    if HAS_TRANSFERS:
        uploaded: list[mx.array] = _native.upload([np.ascontiguousarray(a) for a in arrays])
        return uploaded
    return [mx.array(array) for array in arrays]


def readable(array: mx.array) -> mx.array:
    """The same numbers where the host can read them without moving memory; maybe `array` itself."""
    if HAS_TRANSFERS:
        copied: mx.array = _native.to_host(array)
        return copied
    return array


def readable_copy(array: mx.array) -> mx.array:
    """The same numbers in an array of its own; of numbers, not of bool."""
    return readable(array) if HAS_TRANSFERS else array + 0
