"""Logit bias and penalties against their written formulas, read back through processed logprobs."""

from __future__ import annotations

import dataclasses
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlxrt.core.sampling import Sampling
from mlxrt.engine.sampling import PlainSampler, Sampler, SamplingBatch, SamplingRow, sample

VOCABULARY = 60


def _ids(values: list[int]) -> np.ndarray:
    return np.array(values, np.int32)


def _assert_adjusted(run: Any, reference: Any, rows: list[SamplingRow], pending: list[int]) -> None:
    logits = np.random.default_rng(4).standard_normal((len(rows), VOCABULARY)).astype(np.float32)
    asked = [
        dataclasses.replace(
            row,
            sampling=dataclasses.replace(
                row.sampling, top_logprobs=VOCABULARY, processed_logprobs=True
            ),
        )
        for row in rows
    ]
    _, details = run(logits, asked, pending)
    for k, row in enumerate(rows):
        generated = [*row.generated.tolist(), *(pending[i] for i in row.pending)]
        adjusted = reference.adjusted(logits[k], row.sampling, row.prompt.tolist(), generated)
        found = np.empty(VOCABULARY)
        for token, logprob in details[k].top:
            found[token] = logprob
        assert np.allclose(found, np.log(reference.softmax(adjusted)), atol=2e-5), k


RULES = [
    Sampling(repetition_penalty=1.7),
    Sampling(repetition_penalty=0.6),
    Sampling(presence_penalty=1.5),
    Sampling(presence_penalty=-2.0),
    Sampling(frequency_penalty=0.75),
    Sampling(frequency_penalty=-0.3),
    Sampling(repetition_penalty=1.2, presence_penalty=0.4, frequency_penalty=0.1),
    Sampling(repetition_penalty=1.2, logit_bias=((1, -2.0), (2, 3.0), (50, 1.0))),
    Sampling(logit_bias=((0, 5.0), (59, -5.0))),
]


@pytest.mark.parametrize("sampling", RULES)
def test_formula(run: Any, reference: Any, sampling: Sampling) -> None:
    row = SamplingRow(sampling, prompt=_ids([1, 2, 2, 50]), generated=_ids([2, 3, 3, 3, 4]))
    _assert_adjusted(run, reference, [row], [])


def test_every_row_has_its_own_rules_and_history(run: Any, reference: Any) -> None:
    rng = np.random.default_rng(5)
    rows = [
        SamplingRow(
            sampling,
            prompt=rng.integers(0, VOCABULARY, k).astype(np.uint32),
            generated=rng.integers(0, 10, 3 * k).astype(np.int32),
            pending=[k % 4, 3 - k % 4][: k % 3],
        )
        for k, sampling in enumerate([*RULES, Sampling(), *RULES[::-1]])
    ]
    assert {len(row.pending) for row in rows} == {0, 1, 2}
    _assert_adjusted(run, reference, rows, [7, 3, 3, 59])


def test_pending_counts_as_generated(run: Any, reference: Any) -> None:
    """A token on the device gives the same as the same token known to the host."""
    sampling = Sampling(repetition_penalty=1.3, presence_penalty=0.7, frequency_penalty=0.9)
    prompt = _ids([8, 9])
    on_device = SamplingRow(sampling, prompt=prompt, generated=_ids([9, 4]), pending=[2, 0])
    on_host = SamplingRow(sampling, prompt=prompt, generated=_ids([9, 4, 4, 12]))
    _assert_adjusted(run, reference, [on_device], [12, 33, 4])
    logits = np.tile(np.random.default_rng(6).standard_normal(VOCABULARY), (2, 1))
    both = [
        dataclasses.replace(
            row,
            sampling=dataclasses.replace(sampling, top_logprobs=60, processed_logprobs=True),
        )
        for row in (on_device, on_host)
    ]
    _, details = run(logits.astype(np.float32), both, [12, 33, 4])
    assert details[0].top == details[1].top


def test_pending_tokens_of_a_lazy_step(sampler: Sampler) -> None:
    """Two greedy steps in one graph: the second penalises what the first has not yet computed."""
    logits = mx.array([[0.0, 5.0, 4.9, 1.0]])
    first = sample(logits, SamplingBatch.greedy(1), sampler=sampler)
    row = SamplingRow(Sampling(presence_penalty=1.0), pending=[0])
    second = sample(logits, SamplingBatch.build([row], 4), first.tokens, sampler=sampler)
    mx.async_eval(second.arrays())
    assert [np.array(each.tokens).tolist() for each in (first, second)] == [[1], [2]]


def test_named_pending_tokens_must_be_given() -> None:
    row = SamplingRow(Sampling(presence_penalty=1.0), pending=[0])
    with pytest.raises(ValueError, match="pending"):
        sample(mx.zeros((1, 4)), SamplingBatch.build([row], 4), sampler=PlainSampler())


def test_repetition_does_not_touch_unseen_tokens_and_counts_do_not_touch_the_prompt(
    run: Any,
) -> None:
    """2 / 2 for the prompt token, 2 for the unseen, 2 / 2 - 2 - 1.5 for the one generated twice."""
    sampling = Sampling(
        repetition_penalty=2.0, presence_penalty=1.5, frequency_penalty=1.0,
        top_logprobs=3, processed_logprobs=True,
    )  # fmt: skip
    row = SamplingRow(sampling, prompt=_ids([0]), generated=_ids([2, 2]))
    _, details = run(np.full((1, 3), 2.0, np.float32), [row])
    ((first, p1), (second, p2), (third, p3)) = details[0].top
    assert (first, second, third) == (1, 0, 2)
    assert (p1 - p2, p1 - p3) == pytest.approx((1.0, 4.5), abs=1e-6)


def test_no_history_changes_nothing(run: Any) -> None:
    logits = np.random.default_rng(7).standard_normal((1, VOCABULARY)).astype(np.float32)
    sampling = Sampling(repetition_penalty=2.0, presence_penalty=2.0, frequency_penalty=2.0)
    tokens, _ = run(logits, [SamplingRow(sampling)])
    assert tokens == [int(logits[0].argmax())]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("bias", [1e9, 3.4e38])
def test_extreme_bias_forces_and_forbids(run: Any, bias: float, temperature: float) -> None:
    logits = np.random.default_rng(8).standard_normal((40, VOCABULARY)).astype(np.float32)
    forced = Sampling(temperature=temperature, logit_bias=((41, bias),))
    forbidden = Sampling(
        temperature=temperature, logit_bias=tuple((i, -bias) for i in range(60) if i not in (3, 7))
    )
    tokens, details = run(logits, [SamplingRow(forced, 5, k) for k in range(40)])
    assert tokens == [41] * 40 and not details
    tokens, details = run(logits, [SamplingRow(forbidden, 5, k) for k in range(40)])
    assert set(tokens) == {3, 7} and not details


@pytest.mark.parametrize("temperature", [0.0, 1.0, 1e-40])
def test_values_past_the_range_of_float32_stay_ordered(run: Any, temperature: float) -> None:
    """Both rows leave float32's range after rule 2: upwards at token 1, downwards at token 1."""
    sampling = Sampling(
        temperature=temperature, repetition_penalty=0.1, logit_bias=((1, 3.4e38),),
        top_logprobs=2, processed_logprobs=True,
    )  # fmt: skip
    down = dataclasses.replace(sampling, repetition_penalty=10.0, logit_bias=((1, -3.4e38),))
    rows = [SamplingRow(rules, prompt=_ids([1])) for rules in (sampling, down)]
    tokens, details = run(np.array([[1.0, 2.0, 0.0]] * 2, np.float32), rows)
    assert tokens[0] == 1 and tokens[1] != 1
    for detail in details.values():
        assert detail.failure is None
        assert all(not np.isnan(logprob) for _, logprob in detail.top)


def test_the_callers_logits_are_left_alone() -> None:
    logits = mx.zeros((2, 8))
    rows = [
        SamplingRow(Sampling(presence_penalty=1.0, logit_bias=((1, 1.0),)), generated=_ids([2]))
    ] * 2
    mx.eval(sample(logits, SamplingBatch.build(rows, 8), sampler=PlainSampler()).arrays())
    assert not np.array(logits).any()
