"""The random number of a draw."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxrt.engine.sampling import uniform

_U64 = st.integers(0, 2**64 - 1)
_POSITION = st.integers(0, 2**63 - 1)


def _one(seed: int, position: int) -> float:
    return float(uniform(np.array([seed], np.uint64), np.array([position], np.int64))[0])


@pytest.fixture(scope="module")
def exact() -> Any:
    def u(seed: int, position: int) -> float:
        mask = (1 << 64) - 1

        def mix(z: int) -> int:
            z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
            z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
            return z ^ (z >> 31)

        state = (mix(seed) + (position + 1) * 0x9E3779B97F4A7C15) & mask
        return (mix(state) >> 40) * 2.0**-24

    return u


@settings(derandomize=True, max_examples=300)
@given(seed=_U64, position=_POSITION)
def test_equals_the_formula_in_unbounded_integers(exact: Any, seed: int, position: int) -> None:
    assert _one(seed, position) == exact(seed, position)


@pytest.mark.parametrize("seed", [0, 1, 2**63, 2**64 - 1])
@pytest.mark.parametrize("position", [0, 1, 2**31, 2**40, 2**63 - 1])
def test_edges(exact: Any, seed: int, position: int) -> None:
    assert _one(seed, position) == exact(seed, position)


def test_seed_zero_is_splitmix64() -> None:
    """With seed 0 the formula is SplitMix64 from state 0, whose first outputs are published."""
    published = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F, 0xF88BB8A8724C81EC]
    drawn = uniform(np.zeros(4, np.uint64), np.arange(4, dtype=np.int64))
    assert drawn.tolist() == [(value >> 40) * 2.0**-24 for value in published]


def test_is_float32_in_the_half_open_unit_interval() -> None:
    u = uniform(np.full(100_000, 7, np.uint64), np.arange(100_000, dtype=np.int64))
    assert u.dtype == np.float32
    assert u.min() >= 0 and u.max() < 1
    assert np.array_equal(u * 2**24, np.floor(u * 2**24))


def _chi_square_is_plausible(u: np.ndarray) -> bool:
    counts = np.bincount((u * 256).astype(np.int64), minlength=256)
    expected = len(u) / 256
    statistic = float(((counts - expected) ** 2 / expected).sum())
    return abs(statistic - 255) < 4 * (2 * 255) ** 0.5


@pytest.mark.parametrize("seed", [0, 1, 2, 12345, 2**64 - 1])
def test_uniform_over_positions(seed: int) -> None:
    u = uniform(np.full(100_000, seed, np.uint64), np.arange(100_000, dtype=np.int64))
    assert _chi_square_is_plausible(u)
    assert abs(np.corrcoef(u[:-1], u[1:])[0, 1]) < 0.015


@pytest.mark.parametrize("position", [0, 1, 4096])
def test_uniform_over_neighbouring_seeds(position: int) -> None:
    u = uniform(np.arange(100_000, dtype=np.uint64), np.full(100_000, position, np.int64))
    assert _chi_square_is_plausible(u)
    assert abs(np.corrcoef(u[:-1], u[1:])[0, 1]) < 0.015


def test_neighbouring_seeds_are_not_shifted_copies() -> None:
    positions = np.arange(1000, dtype=np.int64)
    first = uniform(np.full(1000, 1, np.uint64), positions)
    second = uniform(np.full(1000, 2, np.uint64), positions)
    assert len(set(first.tolist()) & set(second.tolist())) < 5
