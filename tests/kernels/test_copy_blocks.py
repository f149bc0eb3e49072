"""copy_blocks: all sources are read before any destination is written; in place."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlxrt import kernels
from mlxrt.kernels import reference


def numbered(num_blocks: int) -> list[mx.array]:
    """Pools of different shapes and dtypes in which every block holds its own id."""
    ids = mx.arange(num_blocks)
    made = [
        mx.broadcast_to(ids.reshape(-1, 1, 1, 1), (num_blocks, 4, 2, 8)).astype(mx.float32),
        mx.broadcast_to(ids.reshape(-1, 1), (num_blocks, 3)).astype(mx.bfloat16),
        ids.astype(mx.uint8),
    ]
    made = [mx.contiguous(pool) for pool in made]
    mx.eval(made)
    return made


def ids_of(pool: mx.array) -> list[int]:
    flat = np.array(pool.astype(mx.float32)).reshape(pool.shape[0], -1)
    assert (flat == flat[:, :1]).all()
    return [int(x) for x in flat[:, 0]]


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ([], [0, 1, 2, 3, 4]),
        ([(1, 3)], [0, 1, 2, 1, 4]),
        ([(1, 2), (2, 1)], [0, 2, 1, 3, 4]),  # swap
        ([(0, 1), (1, 2), (2, 3), (3, 4)], [0, 0, 1, 2, 3]),  # chain
        ([(3, 4), (2, 3), (1, 2), (0, 1)], [0, 0, 1, 2, 3]),
        ([(0, 1), (1, 2), (2, 0)], [2, 0, 1, 3, 4]),  # ring
        ([(4, 0), (4, 1), (4, 2)], [4, 4, 4, 3, 4]),  # fan-out
        ([(2, 2), (-1, 3), (3, -1)], [0, 1, 2, 3, 4]),
    ],
)
def test_order(pairs: list[tuple[int, int]], expected: list[int]) -> None:
    sources = mx.array([s for s, _ in pairs], mx.int32)
    destinations = mx.array([d for _, d in pairs], mx.int32)
    pools = numbered(5)
    addresses = [kernels.data_address(pool) for pool in pools]
    copied = kernels.copy_blocks(pools, sources, destinations)
    assert [ids_of(pool) for pool in copied] == [expected] * 3
    assert [kernels.data_address(pool) for pool in copied] == addresses
    assert kernels.counters()["copy_blocks"] == 1


@settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(num_blocks=st.integers(1, 12), count=st.integers(0, 12), seed=st.integers(0, 2**16))
def test_any_pairs(num_blocks: int, count: int, seed: int, identical: Callable[..., bool]) -> None:
    rng = np.random.default_rng(seed)
    destinations = rng.permutation(num_blocks)[:count].astype(np.int32)
    sources = rng.integers(-1, num_blocks, len(destinations)).astype(np.int32)
    expected = reference.copy_blocks(
        numbered(num_blocks), mx.array(sources), mx.array(destinations)
    )
    copied = kernels.copy_blocks(numbered(num_blocks), mx.array(sources), mx.array(destinations))
    assert all(identical(a, b) for a, b in zip(copied, expected, strict=True))


def test_memory_is_bounded_by_the_pairs() -> None:
    pools = [mx.zeros((4096, 16, 8, 32)) for _ in range(2)]  # 64 MiB each
    sources, destinations = mx.array([1, 2], mx.int32), mx.array([2, 1], mx.int32)
    mx.eval(pools, sources, destinations)
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    mx.eval(kernels.copy_blocks(pools, sources, destinations))
    assert mx.get_peak_memory() - before < 1 << 20


def test_copies_then_writes_then_reads() -> None:
    """Order inside a step: copies, writes, attention, all in one graph."""
    k_pool, v_pool = mx.zeros((4, 4, 1, 8)), mx.zeros((4, 4, 1, 8))
    ones = mx.ones((4, 1, 8))
    slots = mx.array([4, 5, 6, 7], mx.int64)
    k_pool, v_pool = kernels.kv_write(k_pool, v_pool, ones, 3 * ones, slots)
    mx.eval(k_pool, v_pool)
    copied = kernels.copy_blocks([k_pool, v_pool], mx.array([1], mx.int32), mx.array([2], mx.int32))
    written = kernels.kv_write(*copied, ones[:1], 7 * ones[:1], mx.array([8], mx.int64))
    out = kernels.paged_attention(
        mx.zeros((1, 1, 8)),
        *written,
        mx.array([[2]], mx.int32),
        mx.array([0, 1], mx.int32),
        mx.array([4], mx.int32),
        scale=1.0,
    )
    assert out[0, 0].tolist() == [4.0] * 8  # (7 + 3 + 3 + 3) / 4
    assert (written[1][1] == 3).all()
