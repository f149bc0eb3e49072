"""Long chunks, whose blocks a GPU gathers: as the kernels, neighbours alike in one call."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from mlxrt.attention import HostRows, StepMetadata, gather
from mlxrt.attention.native import NativePath

SIZE, KV_HEADS, HEADS, WIDTH, BLOCKS = 8, 2, 4, 32, 200


def _step(shapes: list[tuple[int, int]], padding: int = 0) -> HostRows:
    """A step of sequences with so many rows and so long a context, in scattered blocks."""
    rng = np.random.default_rng(7)
    counts, contexts = (np.array(column, np.int32) for column in zip(*shapes, strict=True))
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    width = -(-int(contexts.max()) // SIZE)
    ids = rng.permutation(np.arange(1, BLOCKS))[: len(shapes) * width]
    tables = ids.reshape(len(shapes), width).astype(np.int32)
    owner = np.repeat(np.arange(len(shapes)), counts)
    positions = np.concatenate([np.arange(context - count, context) for count, context in shapes])
    slots = tables[owner, positions // SIZE].astype(np.int64) * SIZE + positions % SIZE
    return HostRows(
        np.pad(positions, (0, padding)).astype(np.int32),
        np.pad(slots, (0, padding), constant_values=-1),
        starts,
        contexts,
        tables,
        SIZE,
    )


@pytest.mark.parametrize("window", [0, 20])
@pytest.mark.parametrize(
    ("shapes", "calls"),
    [
        ([(40, 40), (40, 40), (40, 40)], 1),
        ([(40, 80), (40, 80), (1, 9), (40, 80)], 2),
        ([(1, 30), (40, 50), (40, 51), (64, 64), (3, 10)], 3),
    ],
)
def test_chunks_are_the_kernels_own(shapes, calls, window, monkeypatch):
    host = _step(shapes, padding=5)
    mx.random.seed(3)
    pool = tuple(mx.random.normal((BLOCKS, SIZE, KV_HEADS, WIDTH)) for _ in range(2))
    queries = mx.random.normal((len(host.positions), HEADS, WIDTH))
    made = []
    original = gather.attend_segment
    monkeypatch.setattr(
        "mlxrt.attention.native.attend_segment",
        lambda *arguments: made.append(1) or original(*arguments),
    )
    answers = []
    for on_gpu in (True, False):
        path = NativePath()
        path._on_gpu = on_gpu
        prepared = path.prepare(StepMetadata.from_host(host), window)
        out = path.attend(queries, pool, prepared, scale=0.2, window=window, sinks=None)
        answers.append(np.array(out)[: host.query_start[-1]])
    assert len(made) == calls
    np.testing.assert_allclose(answers[0], answers[1], atol=2e-5)


def test_a_call_gathers_a_bounded_number_of_positions(monkeypatch):
    monkeypatch.setattr(gather, "GATHERED_POSITIONS_MAX", 100)
    host = _step([(40, 40)] * 5)
    segments = gather.segments_of(host, np.ones(5, bool), 0)
    assert [(each.first, each.last) for each in segments] == [(0, 80), (80, 160), (160, 200)]
    assert [each.blocks.shape for each in segments] == [(2, 5), (2, 5), (1, 5)]
