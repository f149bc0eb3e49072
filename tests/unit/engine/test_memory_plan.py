"""The memory plan: what fits, what is chosen, what is refused."""

from __future__ import annotations

import pytest

from mlxrt.engine.memory_plan import DoesNotFitError, plan_memory

MIB = 1 << 20


def plan(**changes):
    """A plan over 1000 MiB of which 80 % may be used."""
    arguments = {
        "device_bytes": 1000 * MIB,
        "memory_fraction": 0.8,
        "weight_bytes": 300 * MIB,
        "step_bytes": 100 * MIB,
        "block_bytes": MIB,
        "block_size": 16,
        "num_blocks": None,
        "pool_bytes_max": None,
    }
    return plan_memory(**{**arguments, **changes})


def test_the_pool_takes_what_is_left():
    assert plan().num_blocks == 400
    assert plan().total_bytes == plan().limit_bytes


def test_the_pool_is_bounded_where_nobody_asked_for_more():
    assert plan(pool_bytes_max=50 * MIB).num_blocks == 50
    assert plan(pool_bytes_max=50 * MIB, num_blocks=200).num_blocks == 200


def test_a_refusal_gives_the_numbers():
    with pytest.raises(DoesNotFitError) as caught:
        plan(num_blocks=401)
    message = str(caught.value)
    for part in ("1.0 MiB more", "300.0 MiB", "401 blocks, 6400 positions", "80% of 1,000.0 MiB"):
        assert part in message
    with pytest.raises(DoesNotFitError):
        plan(weight_bytes=700 * MIB)
