"""The same for mlx-cuda: built with -DMLXRT_CUDA=ON, imported where that libmlx is loaded."""

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mlxrt.kernels._native import *  # noqa: F403

def upload(
    arrays: list[NDArray[np.int32] | NDArray[np.int64] | NDArray[np.float32]],
) -> list[mx.array]:
    """Returns the numbers as arrays on the device that share a buffer, moved by one kernel through
    pinned memory; they are read before this returns.

    Args:
        arrays: row-contiguous.

    Raises:
        ValueError: an array is neither int32 nor int64 nor float32.
    """

def to_host(a: mx.array) -> mx.array:
    """Returns a copy in pinned memory, which numpy reads where it lies."""
