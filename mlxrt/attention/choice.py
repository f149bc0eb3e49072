"""Which path serves attention: `auto`, `native` or `gather`."""

from __future__ import annotations

import enum
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from mlxrt.attention.gather import GatherPath
from mlxrt.attention.metadata import HostRows, StepMetadata
from mlxrt.attention.path import AttentionPath


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


def choose_path(choice: AttentionChoice) -> ChosenPath:
    """Makes the path for `choice`; `auto` takes the native path where it runs on the device.

    Evaluates a tiny step on the calling (the engine's) thread to find out.

    Raises:
        ImportError: `native` was asked for and can't be loaded, or has no kernels for the device.
    """
    if choice is AttentionChoice.GATHER:
        return ChosenPath(GatherPath(), "")
    try:
        from mlxrt.attention.native import NativePath

        _try(NativePath())
    except (ImportError, RuntimeError) as error:
        if choice is AttentionChoice.NATIVE:
            raise ImportError(f"native attention can't be used: {error}") from error
        return ChosenPath(GatherPath(), str(error))
    return ChosenPath(NativePath(), "")


def _try(path: AttentionPath) -> None:
    """Runs a step of one row; raises RuntimeError where the device has no kernels for it."""
    rows = HostRows(
        positions=np.zeros(1, np.int32),
        slots=np.full(1, 8, np.int64),
        query_start=np.array([0, 1], np.int32),
        context_len=np.ones(1, np.int32),
        block_tables=np.ones((1, 1), np.int32),
        block_size=8,
    )
    prepared = path.prepare(StepMetadata.from_host(rows))
    row = mx.ones((1, 1, 32))
    pool = (mx.zeros((2, 8, 1, 32)), mx.zeros((2, 8, 1, 32)))
    pool = path.write(*pool, (row, row), prepared)
    mx.eval(path.attend(row, pool, prepared, scale=1.0, window=0, sinks=None))
