"""Long chunks on a GPU: their blocks are gathered for mlx's own attention, beside the kernels, and
the pools are held until they have been read. Run on the CPU, which does not choose so by itself."""

from __future__ import annotations

from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest

from mlxrt import kernels
from mlxrt.attention.floors import CHUNK_ROWS_FLOOR
from mlxrt.attention.metadata import HostRows, StepMetadata
from mlxrt.attention.native import NativePath
from mlxrt.check import kernel_cases
from mlxrt.check.kernel_cases import AttentionCall, AttentionCase
from mlxrt.kernels import reference

LONG = CHUNK_ROWS_FLOOR
CASES = [
    AttentionCase((90,), (LONG,), 2, 2, 64, 16, mx.float32),
    AttentionCase((7, 90, 60), (1, LONG, LONG + 3), 2, 2, 64, 8, mx.float32, padding_rows=3),
    AttentionCase((90, 7, 50), (LONG, 4, 1), 2, 1, 64, 16, mx.float32, window=20),
    AttentionCase((90, 60), (LONG, LONG), 2, 2, 64, 32, mx.float32, with_sinks=True),
]


def path_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> NativePath:
    """Returns the path as a GPU other than CUDA's gets it."""
    with monkeypatch.context() as patch:
        patch.setattr(mx, "default_device", lambda: mx.gpu)
        return NativePath()


def metadata_of(call: AttentionCall) -> StepMetadata:
    """Returns where the rows of a call lie; its rows are in the pools already."""
    q, k_pool, _, tables, starts, contexts = call.arrays
    rows = q.shape[0]
    host = HostRows(
        positions=np.zeros(rows, np.int32), slots=np.full(rows, -1, np.int64),
        query_start=np.array(starts), context_len=np.array(contexts),
        block_tables=np.array(tables), block_size=k_pool.shape[1],
    )  # fmt: skip
    return StepMetadata.from_host(host)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_rows_are_those_of_the_reference(
    case: AttentionCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = kernel_cases.build_attention(case)
    path = path_of_a_gpu(monkeypatch)
    prepared = path.prepare(metadata_of(call), call.window)
    held = kernels.counters()["hold_pools"]
    q, k_pool, v_pool = call.arrays[:3]
    actual = path.attend(
        q, (k_pool, v_pool), prepared, scale=call.scale, window=call.window, sinks=call.sinks
    )
    # Of padding nothing is promised where there are rows for mlx's own attention.
    count = sum(case.rows)
    expected = call.run(reference.paged_attention)
    assert kernel_cases.excess(actual[:count], expected[:count]) <= 2
    segments = sum(rows >= LONG for rows in case.rows)
    assert kernels.counters()["hold_pools"] - held == segments == len(prepared.segments)
    assert (path.counts.gather, path.counts.native) == (1, int(min(case.rows) < LONG))


def test_a_chunk_below_the_floor_has_no_gather(monkeypatch: pytest.MonkeyPatch) -> None:
    call = kernel_cases.build_attention(replace(CASES[0], rows=(LONG - 1,)))
    prepared = path_of_a_gpu(monkeypatch).prepare(metadata_of(call))
    assert not prepared.segments and prepared.most_rows == LONG - 1


def test_the_cpu_gathers_nothing() -> None:
    call = kernel_cases.build_attention(CASES[0])
    assert not NativePath().prepare(metadata_of(call)).segments
