"""hold_pools: the arrays come back without a copy, in the order of the graph."""

from __future__ import annotations

import mlx.core as mx
import pytest

from mlxrt import kernels


def test_the_arrays_come_back_and_nothing_is_copied() -> None:
    pools = [mx.zeros((4, 2, 1, 8)), mx.zeros((4, 2, 1, 8))]
    arrays = [mx.arange(6).reshape(2, 3).transpose(), mx.ones((2, 4), mx.bfloat16)]
    mx.eval(pools, arrays)
    held = kernels.hold_pools(arrays, pools)
    assert len(held) == 2
    for array, same in zip(arrays, held, strict=True):
        assert mx.array_equal(array, same).item() and array.dtype == same.dtype
        assert kernels.data_address(array) == kernels.data_address(same)
    assert kernels.counters()["hold_pools"] == 1


def test_what_was_read_is_computed_before_what_is_written_after_it() -> None:
    k_pool, v_pool = mx.zeros((4, 2, 1, 8)), mx.zeros((4, 2, 1, 8))
    rows, slots = mx.ones((8, 1, 8)), mx.arange(8).astype(mx.int64)
    mx.eval(k_pool, v_pool, rows, slots)
    read = kernels.hold_pools([k_pool[mx.array([2, 1])]], [k_pool, v_pool])
    written = kernels.kv_write(k_pool, v_pool, mx.depends(rows, read), rows, slots)
    mx.eval(written, read)
    assert (read[0] == 0).all().item() and (written[0] == 1).all().item()


def test_it_can_be_compiled() -> None:
    def step(pool: mx.array) -> mx.array:
        return kernels.hold_pools([pool[mx.array([1])] * 2], [pool])[0] + 1

    assert (mx.compile(step)(mx.ones((3, 4))) == 3).all().item()


@pytest.mark.parametrize(("arrays", "pools"), [([], [mx.zeros(1)]), ([mx.zeros(1)], [])])
def test_nothing_to_hold_is_refused(arrays: list[mx.array], pools: list[mx.array]) -> None:
    with pytest.raises(ValueError, match=r"\[hold_pools\] (arrays|pools) must name at least one"):
        kernels.hold_pools(arrays, pools)
