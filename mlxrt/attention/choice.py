"""Which path serves attention: `auto`, `native` or `gather`."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from mlxrt.attention.gather import GatherPath
from mlxrt.attention.metadata import HostRows, StepMetadata
from mlxrt.attention.path import AttentionPath
from mlxrt.attention.pool import LayerShape


class AttentionChoice(enum.Enum):
    """What the user asked for."""

    AUTO = "auto"
    NATIVE = "native"
    GATHER = "gather"


@dataclass(frozen=True, slots=True)
class ChosenPath:
    """What was chosen.

    Attributes:
        reason: why `auto` did not take the native path; empty where it did, or was not asked to.
    """

    path: AttentionPath
    reason: str


@dataclass(frozen=True, slots=True)
class LayerCall:
    """What a layer asks of attention: its KV, and queries of `query_heads` heads."""

    shape: LayerShape
    query_heads: int
    query_dtype: mx.Dtype
    window: int
    has_sinks: bool


def choose_path(choice: AttentionChoice, calls: Iterable[LayerCall], block_size: int) -> ChosenPath:
    """Makes the path for `choice`; `auto` takes the native path where the device has kernels for
    every one of `calls`.

    Evaluates a small step of each different call on the calling (the engine's) thread to find out.

    Raises:
        ImportError: `native` was asked for and can't be loaded, or has no kernels for a call.
    """
    if choice is AttentionChoice.GATHER:
        return ChosenPath(GatherPath(), "")
    try:
        from mlxrt.attention.native import NativePath

        for call in dict.fromkeys(calls):
            _try(NativePath(), call, block_size)
    except (ImportError, RuntimeError, ValueError) as error:
        if choice is AttentionChoice.NATIVE:
            raise ImportError(f"native attention can't be used: {error}") from error
        return ChosenPath(GatherPath(), str(error))
    return ChosenPath(NativePath(), "")


def _try(path: AttentionPath, call: LayerCall, block_size: int) -> None:
    """Runs a step of one sequence with one row and one with two: RuntimeError or ValueError where
    the device has no kernels for it.
    """
    rows = HostRows(
        positions=np.array([0, 0, 1], np.int32),
        slots=np.array([block_size, 2 * block_size, 2 * block_size + 1], np.int64),
        query_start=np.array([0, 1, 3], np.int32),
        context_len=np.array([1, 2], np.int32),
        block_tables=np.array([[1, 0], [2, 3]], np.int32),
        block_size=block_size,
    )
    prepared = path.prepare(StepMetadata.from_host(rows), call.window)
    kv = call.shape
    leading = (4, block_size, kv.num_kv_heads)
    keys = mx.zeros((*leading, kv.key_width), kv.dtype)
    values = mx.zeros((*leading, kv.value_width), kv.dtype)
    new_keys = mx.ones((3, kv.num_kv_heads, kv.key_width), kv.dtype)
    new_values = mx.ones((3, kv.num_kv_heads, kv.value_width), kv.dtype)
    pool = path.write(keys, values, (new_keys, new_values), prepared)
    queries = mx.ones((3, call.query_heads, kv.key_width), call.query_dtype)
    sinks = mx.zeros(call.query_heads) if call.has_sinks else None
    mx.eval(path.attend(queries, pool, prepared, scale=1.0, window=call.window, sinks=sinks))
