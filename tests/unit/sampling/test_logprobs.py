"""Logprobs, the most probable tokens and ranks against their written definitions."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlxrt.core.sampling import Sampling
from mlxrt.engine.sampling import SamplingRow

VOCABULARY = 200


def _logits(count: int) -> np.ndarray:
    return (np.random.default_rng(9).standard_normal((count, VOCABULARY)) * 2).astype(np.float32)


def _assert_described(detail: Any, logprobs: np.ndarray, token: int, count: int) -> None:
    """Compares a detail with the float64 logprobs of its row."""
    assert detail.token == token
    assert detail.logprob == pytest.approx(logprobs[token], abs=1e-5)
    assert len(detail.top) == count
    order = np.lexsort((np.arange(len(logprobs)), -logprobs))[:count]
    assert [i for i, _ in detail.top] == order.tolist()
    assert [p for _, p in detail.top] == pytest.approx(logprobs[order].tolist(), abs=1e-5)
    assert detail.rank == (1 + int((logprobs > logprobs[token]).sum()) if count else 0)


@pytest.mark.parametrize("count", [0, 1, 5, 199, 200])
@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_raw_ignores_every_rule(run: Any, reference: Any, count: int, temperature: float) -> None:
    logits = _logits(20)
    sampling = Sampling(
        temperature=temperature, top_k=4, repetition_penalty=1.4, logit_bias=((4, 6.0),),
        top_logprobs=count,
    )  # fmt: skip
    rows = [SamplingRow(sampling, 3, k, np.arange(50, dtype=np.int32)) for k in range(20)]
    tokens, details = run(logits, rows)
    for k in range(20):
        raw = np.log(reference.softmax(logits[k].astype(np.float64)))
        _assert_described(details[k], raw, tokens[k], count)


@pytest.mark.parametrize("count", [0, 3, 200])
def test_processed_of_a_drawn_row(run: Any, reference: Any, count: int) -> None:
    logits = _logits(20)
    sampling = Sampling(
        temperature=0.7, top_k=30, logit_bias=((4, 2.0),), top_logprobs=count,
        processed_logprobs=True,
    )  # fmt: skip
    rows = [SamplingRow(sampling, 3, k) for k in range(20)]
    tokens, details = run(logits, rows)
    for k in range(20):
        chosen = reference.row(logits[k], rows[k])
        with np.errstate(divide="ignore"):
            _assert_described(details[k], np.log(chosen.probabilities), tokens[k], count)
        assert details[k].logprob > -math.inf


def test_processed_of_a_greedy_row_stops_after_the_penalties(run: Any, reference: Any) -> None:
    logits = _logits(5)
    sampling = Sampling(
        top_k=1, min_p=1.0, top_p=0.1, repetition_penalty=2.0, top_logprobs=6,
        processed_logprobs=True,
    )  # fmt: skip
    prompt = np.arange(0, 200, 2, dtype=np.int32)
    tokens, details = run(logits, [SamplingRow(sampling, prompt=prompt)] * 5)
    for k in range(5):
        adjusted = reference.adjusted(logits[k], sampling, prompt.tolist(), [])
        _assert_described(details[k], np.log(reference.softmax(adjusted)), tokens[k], 6)


def test_each_row_gets_what_it_asked_for(run: Any, reference: Any) -> None:
    """Different counts and both modes in one batch, and rows that ask for nothing between them."""
    logits = _logits(12)
    counts = [None, 0, 2, 7]
    rows: list[SamplingRow | None] = [
        SamplingRow(
            Sampling(
                temperature=(k % 2) * 1.0, top_logprobs=counts[k % 4], processed_logprobs=k >= 6
            ), 1, k,
        )
        for k in range(12)
    ]  # fmt: skip
    rows[4] = None
    tokens, details = run(logits, rows)
    assert sorted(details) == [k for k in range(12) if k % 4]
    for k, detail in details.items():
        logprobs = np.log(reference.softmax(logits[k].astype(np.float64)))
        _assert_described(detail, logprobs, tokens[k], counts[k % 4] or 0)


def test_more_than_the_vocabulary_gives_the_vocabulary(run: Any) -> None:
    _, details = run(np.zeros((1, 3), np.float32), [SamplingRow(Sampling(top_logprobs=64))])
    assert [token for token, _ in details[0].top] == [0, 1, 2]


@pytest.mark.parametrize("processed", [False, True])
def test_ties_go_to_the_lower_id_and_signed_zeros_tie(run: Any, processed: bool) -> None:
    logits = np.array([[-1.0, 0.0, -0.0, 0.0, -0.0, 2.0, -1.0]], np.float32)
    sampling = Sampling(top_logprobs=7, processed_logprobs=processed)
    _, details = run(logits, [SamplingRow(sampling)])
    assert [token for token, _ in details[0].top] == [5, 1, 2, 3, 4, 0, 6]


def test_excluded_tokens_follow_in_order_of_id(run: Any) -> None:
    sampling = Sampling(temperature=1.0, top_k=1, top_logprobs=4, processed_logprobs=True)
    _, details = run(np.array([[0.0, 1.0, 7.0, 2.0]], np.float32), [SamplingRow(sampling)])
    assert details[0].top == [(2, 0.0), (0, -math.inf), (1, -math.inf), (3, -math.inf)]
    assert (details[0].logprob, details[0].rank) == (0.0, 1)


def test_rank_counts_strictly_greater_ones(run: Any) -> None:
    """Whatever is drawn of three tokens that tie behind a larger one has rank 2."""
    logits = np.array([[1.0, 1.0, 2.0, 1.0]] * 100, np.float32)
    rows = [SamplingRow(Sampling(temperature=2.0, top_logprobs=1), 6, k) for k in range(100)]
    tokens, details = run(logits, rows)
    assert set(tokens) == {0, 1, 2, 3}
    assert [details[k].rank for k in range(100)] == [1 if token == 2 else 2 for token in tokens]


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_half_precision_logits_are_described_in_float32(
    run: Any, reference: Any, dtype: mx.Dtype
) -> None:
    logits = np.array(mx.array(_logits(4)).astype(dtype).astype(mx.float32))
    tokens, details = run(logits, [SamplingRow(Sampling(top_logprobs=3))] * 4, dtype=dtype)
    for k in range(4):
        logprobs = np.log(reference.softmax(logits[k].astype(np.float64)))
        _assert_described(details[k], logprobs, tokens[k], 3)
        assert details[k].logprob == pytest.approx(logprobs[tokens[k]], abs=1e-6)


def test_logprob_never_exceeds_zero(run: Any) -> None:
    logits = np.zeros((1, 50), np.float32)
    logits[0, 9] = 80.0
    _, details = run(logits, [SamplingRow(Sampling(top_logprobs=2))])
    assert details[0].logprob == 0.0 and details[0].top[0] == (9, 0.0)
