"""Paged attention, KV writes and block copies as MLX primitives that work in place.

Importing this module imports `mlx.core`. If another BLAS is wanted, `mlxrt.blas` must have loaded
it before. Raises ImportError if the extension and the installed MLX do not fit together.

With mlx-cuda the ops come from `_native_cuda`, if this build has it; else from `_native`, which
runs on the CPU and, on macOS, on Metal.
"""

import importlib
import importlib.util
from typing import TYPE_CHECKING

import mlx.core as mx

if TYPE_CHECKING:
    from mlxrt.kernels import _native
else:
    _cuda = mx.cuda.is_available() and importlib.util.find_spec("mlxrt.kernels._native_cuda")
    _native = importlib.import_module(f"mlxrt.kernels.{'_native_cuda' if _cuda else '_native'}")

add_rms_norm = _native.add_rms_norm
native_module = _native
built_mlx_version = _native.built_mlx_version
copy_blocks = _native.copy_blocks
counters = _native.counters
data_address = _native.data_address
gpu_refusal = _native.gpu_refusal
hold_pools = _native.hold_pools
kv_write = _native.kv_write
norm_rope_write = _native.norm_rope_write
num_threads = _native.num_threads
paged_attention = _native.paged_attention
read_bandwidth = _native.read_bandwidth
reset_counters = _native.reset_counters
sample = _native.sample
set_num_threads = _native.set_num_threads
set_simd_level = _native.set_simd_level
simd_level = _native.simd_level
simd_levels = _native.simd_levels
swiglu = _native.swiglu

try:
    _native.probe(mx.array(0))
except TypeError as error:
    raise ImportError(
        "mlxrt's extension was built with another nanobind than MLX "
        f"{built_mlx_version}: rebuild it with the nanobind that pyproject.toml pins"
    ) from error

__all__ = [
    "add_rms_norm",
    "built_mlx_version",
    "copy_blocks",
    "counters",
    "data_address",
    "gpu_refusal",
    "hold_pools",
    "kv_write",
    "native_module",
    "norm_rope_write",
    "num_threads",
    "paged_attention",
    "read_bandwidth",
    "reset_counters",
    "sample",
    "set_num_threads",
    "set_simd_level",
    "simd_level",
    "simd_levels",
    "swiglu",
]
