"""The same for mlx-cuda: built with -DMLXRT_CUDA=ON, imported where that libmlx is loaded."""

from mlxrt.kernels._native import *  # noqa: F403
