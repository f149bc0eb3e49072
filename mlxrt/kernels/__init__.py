"""Paged attention, KV writes and block copies as MLX primitives that work in place.

Importing this module imports `mlx.core`. If another BLAS is wanted, `mlxrt.blas` must have loaded
it before. Raises ImportError if the extension and the installed MLX do not fit together.
"""

import mlx.core as mx

from mlxrt.kernels._native import (
    built_mlx_version,
    copy_blocks,
    counters,
    data_address,
    kv_write,
    num_threads,
    paged_attention,
    probe,
    read_bandwidth,
    reset_counters,
    set_num_threads,
    set_simd_level,
    simd_level,
    simd_levels,
)

try:
    probe(mx.array(0))
except TypeError as error:
    raise ImportError(
        "mlxrt's extension was built with another nanobind than MLX "
        f"{built_mlx_version}: rebuild it with the nanobind that pyproject.toml pins"
    ) from error

__all__ = [
    "built_mlx_version",
    "copy_blocks",
    "counters",
    "data_address",
    "kv_write",
    "num_threads",
    "paged_attention",
    "read_bandwidth",
    "reset_counters",
    "set_num_threads",
    "set_simd_level",
    "simd_level",
    "simd_levels",
]
