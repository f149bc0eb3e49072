"""The memory plan: what fits, what is chosen, what is refused."""

from __future__ import annotations

import pytest

from mlxrt.engine.memory_plan import DoesNotFitError, GroupBlocks, plan_memory

MIB = 1 << 20


def plan(**changes):
    """A plan over 1000 MiB of which 80 % may be used."""
    arguments = {
        "device_bytes": 1000 * MIB,
        "memory_fraction": 0.8,
        "weight_bytes": 300 * MIB,
        "step_bytes": 100 * MIB,
        "groups": [GroupBlocks(0, MIB)],
        "block_size": 16,
        "num_blocks": None,
        "window_num_blocks": None,
        "pool_bytes_max": None,
    }
    return plan_memory(**{**arguments, **changes})


def counts(**changes):
    """The blocks of each group."""
    return [group.block_count for group in plan(**changes).groups]


def test_the_pool_takes_what_is_left():
    assert counts() == [400]
    assert plan().total_bytes == plan().limit_bytes


def test_the_pool_is_bounded_where_nobody_asked_for_more():
    assert counts(pool_bytes_max=50 * MIB) == [50]
    assert counts(pool_bytes_max=50 * MIB, num_blocks=200) == [200]


def test_groups_share_the_pool():
    both = [GroupBlocks(0, MIB), GroupBlocks(128, 3 * MIB)]
    assert counts(groups=both) == [100, 100]
    assert counts(groups=both, num_blocks=70) == [70, 70]
    assert counts(groups=both, window_num_blocks=20) == [340, 20]
    assert counts(groups=both, num_blocks=50, window_num_blocks=20) == [50, 20]
    assert counts(groups=both[1:], num_blocks=50, window_num_blocks=20) == [20]
    chosen = plan(groups=both, window_num_blocks=20)
    assert chosen.pool_bytes == 400 * MIB
    assert chosen.figures_mib()["group_1_blocks"] == 20
    assert "20 blocks, 304 positions, window 128" in chosen.table()


def test_a_refusal_gives_the_numbers():
    with pytest.raises(DoesNotFitError) as caught:
        plan(num_blocks=401)
    message = str(caught.value)
    for part in ("1.0 MiB more", "300.0 MiB", "401 blocks, 6400 positions", "80% of 1,000.0 MiB"):
        assert part in message
    with pytest.raises(DoesNotFitError):
        plan(weight_bytes=700 * MIB)
    with pytest.raises(DoesNotFitError, match="200 blocks, 3184 positions, window 8"):
        plan(groups=[GroupBlocks(0, MIB), GroupBlocks(8, 3 * MIB)], window_num_blocks=200)
