"""kv_write: in place, in order, the same as the reference."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlxrt import kernels
from mlxrt.kernels import reference

Identical = Callable[[mx.array, mx.array], bool]


def pools(
    num_blocks: int = 6,
    block_size: int = 4,
    heads: int = 2,
    key_dim: int = 8,
    value_dim: int = 8,
    dtype: mx.Dtype = mx.float32,
) -> tuple[mx.array, mx.array]:
    shape = (num_blocks, block_size, heads)
    k_pool = mx.full((*shape, key_dim), float("nan"), dtype)
    v_pool = mx.full((*shape, value_dim), float("nan"), dtype)
    mx.eval(k_pool, v_pool)
    return k_pool, v_pool


@settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    num_blocks=st.integers(1, 9),
    block_size=st.integers(1, 40),
    heads=st.integers(1, 4),
    key_dim=st.integers(1, 40),
    value_dim=st.integers(1, 40),
    rows=st.integers(0, 12),
    pool_dtype=st.sampled_from([mx.float32, mx.bfloat16, mx.float16, mx.uint8]),
    row_dtype=st.sampled_from([mx.float32, mx.bfloat16, mx.float16]),
    seed=st.integers(0, 2**16),
)
def test_any_shape(
    num_blocks: int,
    block_size: int,
    heads: int,
    key_dim: int,
    value_dim: int,
    rows: int,
    pool_dtype: mx.Dtype,
    row_dtype: mx.Dtype,
    seed: int,
    identical: Identical,
) -> None:
    rng = np.random.default_rng(seed)
    start = [
        mx.array(rng.integers(0, 100, (num_blocks, block_size, heads, dim))).astype(pool_dtype)
        for dim in (key_dim, value_dim)
    ]
    slots = rng.permutation(num_blocks * block_size)[:rows]
    slots = np.where(rng.random(len(slots)) < 0.2, -1, slots).astype(np.int64)
    keys, values = (
        mx.array(rng.integers(0, 100, (len(slots), heads, dim))).astype(row_dtype)
        for dim in (key_dim, value_dim)
    )
    expected = reference.kv_write(*start, keys, values, mx.array(slots))
    mx.eval(expected)
    kernels.reset_counters()
    written = kernels.kv_write(*start, keys, values, mx.array(slots))
    assert all(identical(a, b) for a, b in zip(written, expected, strict=True))
    assert kernels.counters()["kv_write"] == 1


def test_in_place_though_old_handles_are_held() -> None:
    k_pool, v_pool = pools(1024, 16, 8, 128, 128)  # 64 MiB each
    addresses = [kernels.data_address(pool) for pool in (k_pool, v_pool)]
    rows = mx.ones((1, 8, 128))
    slots = mx.array([77], mx.int64)
    mx.eval(rows, slots)
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    written = kernels.kv_write(k_pool, v_pool, rows, rows, slots)
    mx.eval(written)
    assert [kernels.data_address(pool) for pool in written] == addresses
    assert mx.get_peak_memory() - before < 1 << 20
    assert (written[0][4, 13] == 1).all() and (k_pool[4, 13] == 1).all()  # one memory


def test_two_writes_chained_and_read() -> None:
    k_pool, v_pool = pools()
    ones, twos = mx.ones((1, 2, 8)), 2 * mx.ones((1, 2, 8))
    first = kernels.kv_write(k_pool, v_pool, ones, ones, mx.array([5], mx.int64))
    second = kernels.kv_write(*first, twos, twos, mx.array([5], mx.int64))
    third = kernels.kv_write(*second, ones, twos, mx.array([6], mx.int64))
    assert (
        (third[0][1, 1] == 2).all() and (third[0][1, 2] == 1).all() and (third[1][1, 2] == 2).all()
    )
    assert mx.isnan(third[0][1, 3]).all()


def test_a_step_ahead_without_copies() -> None:
    """Step N+1 is built and submitted before step N is read, as the engine does."""
    k_pool, v_pool = pools(512, 16, 8, 128, 128)
    address = kernels.data_address(k_pool)
    table = mx.array(np.arange(4, dtype=np.int32)[None])
    q = mx.random.normal((1, 8, 128))
    starts = mx.array([0, 1], mx.int32)
    mx.eval(q, table, starts)
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    pending: list[mx.array] = []
    outputs = []
    for position in range(40):
        row = mx.full((1, 8, 128), float(position))
        k_pool, v_pool = kernels.kv_write(k_pool, v_pool, row, row, mx.array([position], mx.int64))
        out = kernels.paged_attention(
            q, k_pool, v_pool, table, starts, mx.array([position + 1], mx.int32), scale=0.0
        )
        mx.async_eval(out)
        pending.append(out)
        if len(pending) > 1:
            outputs.append(pending.pop(0)[0, 0, 0].item())
    # Scale 0 weighs all positions alike: the mean of 0..p.
    np.testing.assert_allclose(outputs, [p / 2 for p in range(39)], rtol=1e-6)
    assert kernels.data_address(k_pool) == address
    assert mx.get_peak_memory() - before < 1 << 20
    counts = {name: count for name, count in kernels.counters().items() if count}
    assert counts == {"kv_write": 40, "paged_attention": 40}


def test_under_compile_in_place() -> None:
    k_pool, v_pool = pools()
    address = kernels.data_address(k_pool)
    step = mx.compile(lambda k, v, rows, slots: kernels.kv_write(k, v, rows, 2 * rows, slots))
    for slot in range(4):
        rows = mx.full((1, 2, 8), float(slot))
        k_pool, v_pool = step(k_pool, v_pool, rows, mx.array([slot], mx.int64))
        mx.eval(k_pool, v_pool)
    assert kernels.data_address(k_pool) == address
    assert k_pool[0, :, 0, 0].tolist() == [0, 1, 2, 3]
    assert v_pool[0, :, 0, 0].tolist() == [0, 2, 4, 6]


@pytest.mark.parametrize("axes", [(1, 0, 2), (2, 1, 0), (0, 2, 1)])
def test_strided_rows(axes: tuple[int, ...], identical: Identical) -> None:
    keys = mx.random.normal((3, 2, 8))
    inverse = tuple(int(i) for i in np.argsort(axes))
    view = mx.contiguous(keys.transpose(axes)).transpose(inverse)
    slots = mx.array([1, 23, 8], mx.int64)
    expected = reference.kv_write(*pools(), keys, keys, slots)
    written = kernels.kv_write(*pools(), view, view, slots)
    assert all(identical(a, b) for a, b in zip(written, expected, strict=True))


def test_a_view_of_a_larger_array_is_written_in_place() -> None:
    layers = mx.zeros((3, 6, 4, 2, 8))
    mx.eval(layers)
    layer = layers[1:2].squeeze(0)
    ones = mx.ones((1, 2, 8))
    mx.eval(kernels.kv_write(layer, mx.zeros_like(layer), ones, ones, mx.array([9], mx.int64)))
    assert (layers[1, 2, 1] == 1).all() and layers.sum().item() == 16


@pytest.mark.large
def test_slots_beyond_two_to_the_31_elements() -> None:
    """A bfloat16 pool of 2^31 + 2^24 elements, 4.3 GB."""
    block = (16, 8, 128)
    num_blocks = (2**31 + 2**24) // (16 * 8 * 128)
    k_pool = mx.zeros((num_blocks, *block), mx.bfloat16)
    v_pool = mx.zeros((num_blocks, 16, 8, 8), mx.bfloat16)
    last = num_blocks - 1
    rows = mx.random.normal((16, 8, 128)).astype(mx.bfloat16)
    values = mx.random.normal((16, 8, 8)).astype(mx.bfloat16)
    slots = mx.array(np.arange(16, dtype=np.int64) + last * 16)
    k_pool, v_pool = kernels.kv_write(k_pool, v_pool, rows, values, slots)
    k_pool, v_pool = kernels.copy_blocks(
        [k_pool, v_pool], mx.array([last], mx.int32), mx.array([last - 3], mx.int32)
    )
    q = mx.random.normal((1, 8, 128)).astype(mx.bfloat16)
    starts, contexts = mx.array([0, 1], mx.int32), mx.array([16], mx.int32)
    small_k, small_v = rows[None], values[None]
    expected = reference.paged_attention(
        q, small_k, small_v, mx.array([[0]], mx.int32), starts, contexts, scale=0.1
    )
    for block_id in (last, last - 3):
        table = mx.array([[block_id]], mx.int32)
        out = kernels.paged_attention(q, k_pool, v_pool, table, starts, contexts, scale=0.1)
        np.testing.assert_allclose(
            np.array(out.astype(mx.float32)), np.array(expected.astype(mx.float32)), rtol=2**-7
        )
    mx.clear_cache()
