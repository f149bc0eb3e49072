"""Where a running sum passes a share of the total: the search under top-p and under the draw."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxrt.engine.sampling.cumulative import CHUNK, first_reaching


def _first(weights: list[float], share: float, inclusive: bool, total: float | None = None) -> int:
    found = first_reaching(
        mx.array([weights]),
        mx.array([[share]]),
        inclusive=inclusive,
        total=None if total is None else mx.array([[total]]),
    )
    assert found.shape == (1, 1) and found.dtype == mx.int32
    return int(found.item())


@settings(derandomize=True, max_examples=200, deadline=None)
@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=4 * CHUNK).filter(any),
    st.integers(0, 63),
    st.booleans(),
)
def test_integers_are_found_exactly(weights: list[int], share: int, inclusive: bool) -> None:
    """Sums of small integers and shares of 1/64 are exact in float32."""
    sums = np.cumsum(weights)
    target = sums[-1] * share / 64
    passes = (sums >= target if inclusive else sums > target) & (np.array(weights) > 0)
    found = _first([float(w) for w in weights], share / 64, inclusive)
    assert found == int(np.flatnonzero(passes)[0])


@pytest.mark.parametrize("length", [1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK])
def test_last_positive_weight_where_no_sum_passes(length: int) -> None:
    for last in {0, length // 2, length - 1}:
        weights = [1.0] * (last + 1) + [0.0] * (length - last - 1)
        assert _first(weights, 1.0, inclusive=True, total=1e6) == last


def test_weight_zero_is_never_found() -> None:
    weights = [0.0] * (CHUNK + 5) + [1.0] + [0.0] * 200 + [1.0] + [0.0] * 3
    assert _first(weights, 0.0, inclusive=True) == CHUNK + 5
    assert _first(weights, 0.0, inclusive=False) == CHUNK + 5
    assert _first(weights, 0.5, inclusive=False) == CHUNK + 206
    assert _first(weights, 1.0, inclusive=False) == CHUNK + 206


def test_zero_where_no_weight_is_positive() -> None:
    assert _first([0.0] * 300, 0.5, inclusive=False) == 0
    assert _first([float("nan")] * 300, 0.5, inclusive=False) == 0
