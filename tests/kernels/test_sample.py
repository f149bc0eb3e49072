"""The sampling op against the reference, to the bit, and the reference against the rules."""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np
import pytest

from mlxrt import kernels
from mlxrt.check import kernel_cases
from mlxrt.kernels import reference

DTYPES = [mx.float32, mx.float16, mx.bfloat16]
OFF = (0.0, 1.0, math.inf)
"""top_k, top_p and min_p_depth that change nothing."""


def row(temperature: float = 1.0, rules: tuple[float, ...] = OFF, uniform: float = 0.0) -> mx.array:
    """Returns the rules of one row."""
    return mx.array([[temperature, *rules, uniform]], mx.float32)


def sampled(logits: np.ndarray, rules: mx.array) -> tuple[int, bool, float]:
    """Samples one row."""
    token, finite, least = kernels.sample(mx.array(logits[None]), rules)
    return int(token.item()), bool(finite.item()), float(least.item())


@pytest.mark.parametrize("level", kernels.simd_levels())
@pytest.mark.parametrize("seed", range(4))
def test_bits_of_the_reference(level: str, seed: int) -> None:
    kernels.set_simd_level(level)
    rng = np.random.default_rng(seed)
    for _ in range(25):
        call = kernel_cases.draw_sample(rng)
        actual = kernels.sample(call.logits, call.rules)
        expected = reference.sample(call.logits, call.rules)
        for one, other in zip(actual, expected, strict=True):
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(np.array(one), np.array(other), str(call.rules.tolist()))
    assert kernels.counters()["sample"] == 25


def test_weights_are_those_of_the_exponential() -> None:
    depths = np.abs(np.random.default_rng(1).standard_normal(100_000) * 9).astype(np.float32)
    weights = reference.sampling_weights(depths).astype(np.float64) * 2.0**-40
    exact = np.exp(-depths.astype(np.float64))
    assert (np.abs(weights - exact) <= 2e-7 * exact + 2.0**-40).all()
    edges = np.array([0.0, 27.7, 27.8, 1e30, np.inf], np.float32)
    assert reference.sampling_weights(edges).tolist() == [1 << 40, 1, 0, 0, 0]


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_a_row_does_not_depend_on_its_batch(threads: int) -> None:
    kernels.set_num_threads(threads)
    rng = np.random.default_rng(2)
    logits = mx.array((rng.standard_normal((30, 4099)) * 2).astype(np.float32))
    rules = np.tile(np.array([0.8, 50, 0.9, 4.0, 0.0], np.float32), (30, 1))
    rules[:, 4] = rng.random(30, np.float32)
    together = kernels.sample(logits, mx.array(rules))[0].tolist()
    order = rng.permutation(30)
    shuffled = kernels.sample(logits[mx.array(order)], mx.array(rules[order]))[0].tolist()
    alone = [
        kernels.sample(logits[i : i + 1], mx.array(rules[i : i + 1]))[0].item() for i in range(30)
    ]
    assert together == alone and [together[i] for i in order] == shuffled
    assert len(set(together)) > 20


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strides_and_offsets_are_taken(dtype: mx.Dtype) -> None:
    whole = mx.array(np.random.default_rng(3).standard_normal((7, 301)).astype(np.float32))
    whole = whole.astype(dtype)
    for view in (whole[1:4], whole[::2], whole[:, 3:], whole.T):
        copied = mx.array(np.array(view.astype(mx.float32))).astype(dtype)
        rules = mx.concatenate([row(1.0, (5, 0.9, math.inf), 0.6)] * view.shape[0])
        for one, other in zip(
            kernels.sample(view, rules), kernels.sample(copied, rules), strict=True
        ):
            assert mx.array_equal(one, other).item()


def test_greedy_rows_take_the_first_of_the_largest() -> None:
    logits = np.zeros((3, 2000), np.float32)
    logits[0, [1999, 1234, 700]] = 3.0
    logits[1] = -np.inf
    logits[1, 17] = -5.0
    logits[2, :1000] = -0.0
    tokens, finite, least = kernels.sample(mx.array(logits), row(0.0))
    assert tokens.tolist() == [700, 17, 0] and finite.tolist() == [True, False, True]
    assert least.tolist() == [-math.inf] * 3


@pytest.mark.parametrize("odd", [math.nan, -math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nan_and_infinity_give_token_0_and_touch_no_other_row(
    odd: float, temperature: float
) -> None:
    logits = np.zeros((3, 1030), np.float32)
    logits[:, 900] = 50.0
    logits[1, 1029] = odd
    rules = mx.concatenate([row(temperature, (0, 0.9, math.inf), 0.5)] * 3)
    tokens, finite, _ = kernels.sample(mx.array(logits), rules)
    assert tokens.tolist() == [900, 0, 900] and finite.tolist() == [True, False, True]


def test_a_row_of_minus_infinity_gives_token_0() -> None:
    nothing = np.full(40, -np.inf, np.float32)
    assert sampled(nothing, row(1.0, (3, 0.5, 1.0), 0.9))[:2] == (0, False)


def test_what_is_forbidden_is_never_drawn() -> None:
    logits = np.full(1000, -np.inf, np.float32)
    logits[[3, 500, 999]] = 0.0
    drawn = {sampled(logits, row(1.0, OFF, u))[0] for u in (0.0, 0.3, 0.5, 0.9, 1 - 2.0**-24)}
    assert drawn == {3, 500, 999}
    assert sampled(logits, row(1.0, (5, 1.0, math.inf)))[2] == -math.inf


@pytest.mark.parametrize("top_k", [1, 7, 8, 9, 4000])
def test_top_k_of_flat_rows_keeps_all_ties(top_k: int) -> None:
    """The radix search's digits end inside and between runs of equal logits."""
    logits = np.repeat(np.linspace(4, -4, 500), 8).astype(np.float32)
    least = sampled(logits, row(1.0, (top_k, 1.0, math.inf)))[2]
    assert least == logits[top_k - 1]


def test_tiny_top_p_keeps_the_largest_and_its_ties() -> None:
    logits = np.zeros(5000, np.float32)
    logits[[10, 4000]] = 1e-6
    for top_p in (1e-30, 1e-9, 1e-4):
        tokens = {sampled(logits, row(1.0, (0, top_p, math.inf), u))[0] for u in (0.0, 0.49, 0.51)}
        assert tokens == {10, 4000}


def test_rules_that_make_no_sense_count_as_off() -> None:
    logits = np.random.default_rng(4).standard_normal(50).astype(np.float32)
    nan = math.nan
    assert sampled(logits, row(nan, (3, 0.5, 1.0), 0.4))[0] == logits.argmax()
    assert sampled(logits, row(-1.0, (3, 0.5, 1.0), 0.4))[0] == logits.argmax()
    plain = sampled(logits, row(1.0, OFF, 0.0))
    for rules in ((nan, nan, nan), (-3.0, 2.0, -1.0), (50.0, 1.0, nan), (1e30, math.inf, nan)):
        for uniform in (0.0, nan, 1.0, -0.5):
            assert sampled(logits, row(1.0, rules, uniform)) == plain


def test_an_overflowing_difference_is_far_away_not_nan() -> None:
    logits = np.array([3e38, -3e38, 3e38, 0.0], np.float32)
    tokens = {sampled(logits, row(1.0, (0, 0.999, math.inf), u))[0] for u in (0.0, 0.6)}
    assert tokens == {0, 2}
    assert sampled(logits, row(2.0**-126, OFF, 0.9))[0] == 2


def test_every_random_number_of_equal_logits() -> None:
    """Of 256 equal logits the token is floor(256 u): the boundaries belong to the next token."""
    u = np.arange(4096) / 4096
    rules = np.tile(np.array([1.0, 0, 1.0, np.inf, 0.0], np.float32), (4096, 1))
    rules[:, 4] = u
    tokens = kernels.sample(mx.zeros((4096, 256)), mx.array(rules))[0]
    assert tokens.tolist() == np.floor(256 * u).astype(int).tolist()
