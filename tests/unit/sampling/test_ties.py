"""Ties and exact thresholds, built so that float32 holds them exactly."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlxrt.core.sampling import Sampling
from mlxrt.engine.sampling import SamplingRow, uniform

LN2 = math.log(2.0)


def _kept(run: Any, logits: list[float], **rules: Any) -> set[int]:
    """The tokens that the rules leave, by their processed logprobs."""
    sampling = Sampling(
        **({"temperature": 1.0} | rules), top_logprobs=len(logits), processed_logprobs=True
    )
    _, details = run(np.array([logits], np.float32), [SamplingRow(sampling, 1, 1)])
    return {token for token, logprob in details[0].top if logprob > -math.inf}


@pytest.mark.parametrize("dtype_name", ["float32", "float16", "bfloat16"])
def test_greedy_tie_goes_to_the_lowest_id(run: Any, dtype_name: str) -> None:
    logits = np.zeros((3, 5000), np.float32)
    logits[0, [4999, 17, 300]] = 2.0
    logits[1, [1, 0]] = 1.0
    tokens, _ = run(logits, [None] * 3, dtype=getattr(mx, dtype_name))
    assert tokens == [17, 0, 0]


def test_greedy_tie_made_by_a_bias(run: Any) -> None:
    sampling = Sampling(logit_bias=((2, 1.0),))
    tokens, _ = run(np.array([[0.0, 0.0, 1.0, 2.0]], np.float32), [SamplingRow(sampling)])
    assert tokens == [2]


def test_top_k_keeps_all_that_tie_with_the_last(run: Any) -> None:
    logits = [1.0, 3.0, 2.0, 2.0, 0.0, 2.0]
    assert _kept(run, logits, top_k=1) == {1}
    assert _kept(run, logits, top_k=2) == {1, 2, 3, 5}
    assert _kept(run, logits, top_k=4) == {1, 2, 3, 5}
    assert _kept(run, logits, top_k=5) == {0, 1, 2, 3, 5}


@pytest.mark.parametrize("top_k", [0, 6, 7, 2**32 - 1])
def test_top_k_of_the_vocabulary_or_more_is_off(run: Any, top_k: int) -> None:
    assert _kept(run, [1.0, 3.0, 2.0, 2.0, 0.0, 2.0], top_k=top_k) == set(range(6))


def test_top_p_keeps_all_that_tie_with_the_last(run: Any) -> None:
    assert _kept(run, [0.0, 0.0, 0.0, 0.0], top_p=0.25) == {0, 1, 2, 3}
    # Probabilities 1/2, 1/4 and 1/4: the second of them reaches 0.6, the third ties with it.
    assert _kept(run, [0.0, -LN2, -LN2], top_p=0.6) == {0, 1, 2}
    assert _kept(run, [0.0, -LN2, -LN2], top_p=0.4) == {0}


def test_top_p_is_reached_by_equality(run: Any) -> None:
    """Probabilities 1/2, 1/4, 1/4, exactly so where exp rounds to the nearest."""
    assert mx.exp(mx.array([0.0, -LN2])).tolist() == [1.0, 0.5]
    assert _kept(run, [0.0, -LN2, -LN2], top_p=0.5) == {0}
    assert _kept(run, [0.0, -LN2, -LN2], top_p=0.5 + 2**-20) == {0, 1, 2}


def test_top_p_of_one_is_off_whatever_rounds(run: Any) -> None:
    assert _kept(run, [0.0, -60.0, -87.0], top_p=1.0) == {0, 1, 2}
    assert _kept(run, [0.0, -60.0, -87.0], top_p=1.0, top_k=2) == {0, 1}


def test_top_p_of_one_is_off_beside_a_row_where_it_is_not(run: Any) -> None:
    """In float32 the first token's probability is 1 already, but the others are kept."""
    asked = {"temperature": 1.0, "top_logprobs": 3, "processed_logprobs": True}
    rows = [
        SamplingRow(Sampling(**asked, top_k=2)),
        SamplingRow(Sampling(**asked, top_k=2, top_p=0.5)),
    ]
    _, details = run(np.array([[0.0, -60.0, -87.0]] * 2, np.float32), rows)
    kept = [sum(p > -math.inf for _, p in details[k].top) for k in (0, 1)]
    assert kept == [2, 1]


def test_top_p_ties_outside_a_short_top_k_head(run: Any) -> None:
    """Top-k 2 of four equal logits keeps all four, and top-p works on all four."""
    logits = [0.0] * 4 + [-3.0] * 2000
    assert _kept(run, logits, top_k=2) == {0, 1, 2, 3}
    assert _kept(run, logits, top_k=2, top_p=0.5) == {0, 1, 2, 3}
    # 1/2 + 4 * 1/8 of what is kept: with the ties in the sum the first token alone reaches 0.45.
    logits = [2 * LN2] + [0.0] * 4 + [-9.0] * 2000
    assert _kept(run, logits, top_k=2, top_p=0.45) == {0}
    assert _kept(run, logits, top_k=2, top_p=0.55) == {0, 1, 2, 3, 4}


def test_top_p_counts_only_what_min_p_and_top_k_left(run: Any) -> None:
    # Probabilities 8, 4, 2, 1, 1 of 16; of the first three 8/14, 12/14.
    logits = [3 * LN2, 2 * LN2, LN2, 0.0, 0.0]
    assert _kept(run, logits, top_p=0.53) == {0, 1}
    assert _kept(run, logits, top_p=0.53, top_k=3) == {0}
    assert _kept(run, logits, top_p=0.53, min_p=0.2) == {0}


def test_min_p_keeps_what_is_exactly_at_the_bound(run: Any) -> None:
    half = float(np.float32(LN2))
    assert _kept(run, [half, 0.0, -half], min_p=0.5) == {0, 1}
    assert _kept(run, [half, half, 0.0], min_p=1.0) == {0, 1}
    assert _kept(run, [1.0, -50.0, -80.0], min_p=0.0) == {0, 1, 2}


def test_min_p_looks_at_logits_after_the_temperature(run: Any) -> None:
    logits = [0.0, -1.0, -2.0]
    assert _kept(run, logits, min_p=0.3) == {0, 1}
    assert _kept(run, logits, min_p=0.3, temperature=2.0) == {0, 1, 2}
    assert _kept(run, logits, min_p=0.3, temperature=0.5) == {0}


def test_draw_boundaries_are_exclusive(run: Any, reference: Any) -> None:
    """Of 256 equal logits the token is floor(256 u), for every u: the sums of 1/256 are exact."""
    rows = [SamplingRow(Sampling(temperature=1.0), 9, position) for position in range(3000)]
    tokens, _ = run(np.zeros((3000, 256), np.float32), rows)
    assert tokens == [int(256 * reference.uniform(9, position)) for position in range(3000)]
    assert len(set(tokens)) == 256


def test_a_sum_equal_to_the_random_number_is_passed_over(run: Any) -> None:
    """With u = k / 256 exactly, the sums up to k - 1 equal u and the token is k."""
    u = uniform(np.arange(1 << 21, dtype=np.uint64), np.zeros(1 << 21, np.int64))
    seeds = np.flatnonzero((u * 256) % 1 == 0)
    assert len(seeds) > 10
    rows = [SamplingRow(Sampling(temperature=1.0), int(seed), 0) for seed in seeds]
    tokens, _ = run(np.zeros((len(rows), 256), np.float32), rows)
    assert tokens == (u[seeds] * 256).astype(int).tolist()


def _seed_of_extreme(position: int, largest: bool) -> tuple[int, float]:
    seeds = np.arange(1 << 21, dtype=np.uint64)
    u = uniform(seeds, np.full(len(seeds), position, np.int64))
    best = int(u.argmax() if largest else u.argmin())
    return best, float(u[best])


def test_largest_and_smallest_random_number_stay_among_the_kept(run: Any) -> None:
    high, u_high = _seed_of_extreme(3, largest=True)
    low, u_low = _seed_of_extreme(3, largest=False)
    assert u_high > 1 - 1e-5 and u_low < 1e-5
    logits = np.full((2, 1000), -200.0, np.float32)
    logits[:, 100:900] = np.random.default_rng(0).standard_normal(800)
    sampling = Sampling(temperature=1.0)
    tokens, _ = run(logits, [SamplingRow(sampling, high, 3), SamplingRow(sampling, low, 3)])
    assert tokens == [899, 100]
