"""Rows beside each other: independence, padding, failed rows, and that nobody pays for others."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlxrt.core.sampling import GREEDY, Sampling
from mlxrt.engine.sampling import (
    PlainSampler,
    Sampled,
    Sampler,
    SamplingBatch,
    SamplingRow,
    is_plain_greedy,
    sample,
)
from mlxrt.engine.sampling.native import NativeSampler
from mlxrt.errors import Reason

VOCABULARY = 500
MIX = [
    Sampling(temperature=1.0),
    Sampling(),
    Sampling(temperature=0.7, top_p=0.9),
    Sampling(temperature=0.7, top_k=5, top_logprobs=3),
    Sampling(repetition_penalty=1.5, top_logprobs=0),
    Sampling(temperature=1.0, min_p=0.1, presence_penalty=1.0),
    Sampling(temperature=1.1, top_k=50, top_p=0.8, top_logprobs=2, processed_logprobs=True),
]


def _case(count: int) -> tuple[np.ndarray, list[SamplingRow | None]]:
    rng = np.random.default_rng(12)
    logits = (rng.standard_normal((count, VOCABULARY)) * 2).astype(np.float32)
    rows: list[SamplingRow | None] = []
    for k in range(count):
        sampling = MIX[k % len(MIX)]
        history = rng.integers(0, VOCABULARY, 9).astype(np.int32)
        row = SamplingRow(sampling, 2**60 + k, 3 * k, history, history)
        rows.append(None if is_plain_greedy(sampling) else row)
    return logits, rows


def test_a_row_alone_draws_what_it_draws_in_a_batch(run: Any) -> None:
    logits, rows = _case(70)
    tokens, details = run(logits, rows)
    for k in range(70):
        alone, alone_details = run(logits[k : k + 1], rows[k : k + 1])
        assert alone[0] == tokens[k]
        assert (0 in alone_details) == (k in details)


def test_order_of_rows_does_not_matter(run: Any) -> None:
    logits, rows = _case(70)
    tokens, details = run(logits, rows)
    order = np.random.default_rng(13).permutation(70)
    moved, moved_details = run(logits[order], [rows[k] for k in order])
    assert moved == [tokens[k] for k in order]
    assert {int(order[k]): detail for k, detail in moved_details.items()} == details


@pytest.mark.parametrize("draws_only", [False, True])
@pytest.mark.parametrize("padding", [np.nan, 0.0])
def test_padding_rows_change_nothing(run: Any, padding: float, draws_only: bool) -> None:
    logits, rows = _case(21)
    if draws_only:
        keep = [k for k, row in enumerate(rows) if row and row.sampling.temperature > 0]
        logits, rows = logits[keep], [rows[k] for k in keep]
    tokens, details = run(logits, rows)
    padded = np.concatenate([logits, np.full((11, VOCABULARY), padding, np.float32)])
    padded_tokens, padded_details = run(padded, rows)
    assert (padded_tokens, padded_details) == (tokens, details)


def test_other_seed_or_position_draws_anew(run: Any) -> None:
    logits = np.zeros((200, VOCABULARY), np.float32)
    sampling = Sampling(temperature=1.0)
    by_position, _ = run(logits, [SamplingRow(sampling, 4, k) for k in range(200)])
    by_seed, _ = run(logits, [SamplingRow(sampling, k, 4) for k in range(200)])
    assert len(set(by_position)) > 150 and len(set(by_seed)) > 150
    assert by_position[4] == by_seed[4]


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
def test_a_poisoned_row_fails_alone(run: Any, poison: float, dtype: mx.Dtype) -> None:
    """One bad logit, anywhere in the row, under every rule."""
    logits, rows = _case(28)
    tokens, details = run(logits, rows, dtype=dtype)
    poisoned = logits.copy()
    bad = list(range(0, 28, 2))
    for place, k in enumerate(bad):
        poisoned[k, [0, VOCABULARY - 1, 250, 128][place % 4]] = poison
    found, found_details = run(poisoned, rows, dtype=dtype)
    for k in range(28):
        if k in bad:
            assert found_details[k].failure.reason is Reason.NON_FINITE_LOGITS
            assert found_details[k].token is None
            assert 0 <= found[k] < VOCABULARY
        else:
            assert found[k] == tokens[k]
            assert found_details.get(k) == details.get(k)


def test_a_row_of_nan_alone_gives_a_token_of_the_vocabulary(run: Any) -> None:
    logits, rows = _case(14)
    tokens, details = run(np.full_like(logits, np.nan), rows)
    assert len(details) == 14
    assert all(detail.failure is not None for detail in details.values())
    assert all(0 <= token < VOCABULARY for token in tokens)


def test_arrays_have_the_rows_of_the_logits(sampler: Sampler) -> None:
    rows = [SamplingRow(Sampling(temperature=1.0)), SamplingRow(Sampling(temperature=1.0))]
    for batch in (SamplingBatch.greedy(2), SamplingBatch.build(rows, 8)):
        sampled = sample(mx.zeros((5, 8)), batch, sampler=sampler)
        assert (sampled.tokens.shape, sampled.finite.shape) == ((5,), (5,))
        assert (sampled.tokens.dtype, sampled.finite.dtype) == (mx.int32, mx.bool_)


def test_no_temperature_is_below_the_normal_numbers() -> None:
    """Some devices flush smaller ones to zero."""
    batch = SamplingBatch.build([SamplingRow(Sampling(temperature=1e-45))], 8)
    assert batch.draws is not None
    assert batch.draws.temperature.item() >= 2.0**-126


@pytest.mark.parametrize("temperature", [1e-45, 1e-38, 1e-6])
@pytest.mark.parametrize("rules", [{}, {"top_p": 0.9}, {"top_k": 3}, {"min_p": 0.5}])
def test_tiny_temperature_is_greedy(run: Any, temperature: float, rules: dict[str, Any]) -> None:
    logits, _ = _case(20)
    sampling = Sampling(temperature=temperature, top_logprobs=1, processed_logprobs=True, **rules)
    tokens, details = run(logits, [SamplingRow(sampling, 8, k) for k in range(20)])
    assert tokens == logits.argmax(-1).tolist()
    assert [detail.logprob for detail in details.values()] == [0.0] * 20


def test_huge_temperature_is_uniform(run: Any, reference: Any) -> None:
    logits, _ = _case(20)
    rows = [SamplingRow(Sampling(temperature=3e38), 8, k) for k in range(20)]
    tokens, _ = run(logits, rows)
    expected = [VOCABULARY * reference.uniform(8, k) for k in range(20)]
    assert np.allclose(tokens, np.floor(expected), atol=1)


def test_largest_finite_logits_are_finite(run: Any) -> None:
    logits = np.full((2, 10), np.finfo(np.float32).max, np.float32)
    logits[:, 5:] *= -1
    tokens, details = run(logits, [None, SamplingRow(Sampling(temperature=0.01), 1, 1)])
    assert not details and tokens[0] == 0 and tokens[1] < 5


def _primitives(make: Callable[[], Sampled]) -> list[str]:
    graph = io.StringIO()
    mx.export_to_dot(graph, *make().arrays())
    return re.findall(r'label ?="([A-Za-z:]+)"[^\n]*shape=rectangle', graph.getvalue())


def test_a_plain_greedy_step_is_argmax_and_the_finite_check() -> None:
    logits = mx.zeros((4, 32))
    mx.eval(logits)
    for batch in (SamplingBatch.greedy(4), SamplingBatch.build([None] * 4, 32)):
        names = _primitives(lambda batch=batch: sample(logits, batch, sampler=PlainSampler()))
        assert names.count("ArgReduce") == 1 and (names.count("Max"), names.count("Min")) == (1, 1)
        assert len(names) <= 14, names


@pytest.mark.parametrize(
    ("rules", "plain_min"),
    [({}, 9), ({"temperature": 0.7}, 40), ({"temperature": 0.7, "top_p": 0.9}, 80),
     ({"temperature": 0.7, "top_k": 5, "top_p": 0.9}, 80)],
)  # fmt: skip
def test_the_native_sampler_is_one_operation(rules: dict[str, Any], plain_min: int) -> None:
    logits = mx.zeros((4, 32))
    mx.eval(logits)
    row = SamplingRow(Sampling(**rules)) if rules else None
    batch = SamplingBatch.build([row] * 4, 32)
    native = _primitives(lambda: sample(logits, batch, sampler=NativeSampler()))
    plain = _primitives(lambda: sample(logits, batch, sampler=PlainSampler()))
    # MLX drops what is contiguous already when it evaluates.
    assert set(native) == {"mlxrt::Sample", "Contiguous"} and native.count("mlxrt::Sample") == 1
    assert len(plain) >= plain_min


def test_only_what_is_asked_for_is_built() -> None:
    logits = mx.zeros((4, 32))
    mx.eval(logits)

    def names(sampling: Sampling) -> set[str]:
        batch = SamplingBatch.build([None, SamplingRow(sampling), None, None], 32)
        return set(_primitives(lambda: sample(logits, batch, sampler=PlainSampler())))

    assert not {"Sort", "Partition", "LogSumExp"} & names(Sampling(temperature=0.5))
    assert not {"Sort", "Partition"} & names(Sampling(temperature=0.5, min_p=0.5))
    assert not {"Sort", "Partition"} & names(Sampling(temperature=0.5, top_k=32))
    assert "Partition" in names(Sampling(temperature=0.5, top_k=3))
    assert "Partition" not in names(Sampling(temperature=0.5, top_p=0.5))
    assert "LogSumExp" in names(Sampling(top_logprobs=0))


def test_nothing_is_evaluated(sampler: Sampler) -> None:
    """Tracing by mx.compile refuses any evaluation of what depends on the logits."""
    logits, rows = _case(14)
    batch = SamplingBatch.build(rows, VOCABULARY)
    traced = mx.compile(lambda x: sample(x, batch, sampler=sampler).arrays())
    built = sample(mx.array(logits), batch, sampler=sampler)
    assert len(traced(mx.array(logits))) == len(built.arrays())


def test_too_few_rows_of_logits_are_refused() -> None:
    with pytest.raises(ValueError, match="3 rows"):
        sample(mx.zeros((3, 8)), SamplingBatch.greedy(4), sampler=PlainSampler())


def test_plain_greedy_is_told_apart() -> None:
    assert is_plain_greedy(GREEDY)
    assert is_plain_greedy(Sampling(top_k=5, top_p=0.5, min_p=0.5))
    for fields in (
        {"temperature": 0.1}, {"logit_bias": ((1, 1.0),)}, {"repetition_penalty": 1.1},
        {"presence_penalty": 0.1}, {"frequency_penalty": 0.1}, {"top_logprobs": 0},
    ):  # fmt: skip
        assert not is_plain_greedy(Sampling(**fields))  # type: ignore[arg-type]
