"""Each rule and mixes of them, token by token against the reference."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlxrt.core.sampling import Sampling
from mlxrt.engine.sampling import SamplingRow

RULES = {
    "plain": Sampling(temperature=1.0),
    "cool": Sampling(temperature=0.3),
    "hot": Sampling(temperature=3.0),
    "min_p": Sampling(temperature=1.0, min_p=0.05),
    "min_p_1": Sampling(temperature=1.0, min_p=1.0),
    "top_k": Sampling(temperature=1.0, top_k=7),
    "top_k_1": Sampling(temperature=1.0, top_k=1),
    "top_k_nearly_all": Sampling(temperature=1.0, top_k=299),
    "top_p": Sampling(temperature=1.0, top_p=0.8),
    "top_p_small": Sampling(temperature=1.0, top_p=1e-6),
    "top_k_top_p": Sampling(temperature=0.8, top_k=20, top_p=0.7),
    "min_p_top_p": Sampling(temperature=1.2, min_p=0.02, top_p=0.9),
    "all": Sampling(temperature=0.9, min_p=0.01, top_k=40, top_p=0.95),
    "all_with_penalties": Sampling(
        temperature=0.9, min_p=0.01, top_k=40, top_p=0.95, repetition_penalty=1.3,
        presence_penalty=0.5, frequency_penalty=-0.4, logit_bias=((3, 4.0), (11, -100.0)),
    ),
    "greedy": Sampling(),
    "greedy_with_penalties": Sampling(repetition_penalty=1.5, logit_bias=((5, 2.5),)),
}  # fmt: skip

VOCABULARY = 300
MARGIN = 1e-5


def _row(sampling: Sampling, k: int, rng: np.random.Generator) -> SamplingRow:
    prompt = rng.integers(0, VOCABULARY, 40).astype(np.uint32)
    generated = rng.integers(0, 30, 12).astype(np.int32)
    return SamplingRow(sampling, 1000 + k, k, prompt, generated)


def _compare(
    run: Any, reference: Any, logits: np.ndarray, rows: list[SamplingRow | None]
) -> tuple[int, int]:
    """Asserts equal tokens where no boundary is near; returns how many rows were and were not."""
    tokens, _ = run(logits, rows)
    compared = 0
    for k, row in enumerate(rows):
        chosen = reference.row(logits[k], row or SamplingRow(Sampling()))
        if chosen.margin > MARGIN:
            compared += 1
            assert tokens[k] == chosen.token, (k, row)
        else:
            assert chosen.kept[tokens[k]]
    return compared, len(rows) - compared


@pytest.mark.parametrize("name", RULES)
def test_one_rule_set_in_every_row(run: Any, reference: Any, name: str) -> None:
    rng = np.random.default_rng(1)
    logits = (rng.standard_normal((200, VOCABULARY)) * 3).astype(np.float32)
    rows = [_row(RULES[name], k, rng) for k in range(200)]
    compared, skipped = _compare(run, reference, logits, rows)
    assert skipped <= 10 and compared >= 190


def test_every_rule_set_in_one_batch(run: Any, reference: Any) -> None:
    rng = np.random.default_rng(2)
    count = 20 * len(RULES)
    logits = (rng.standard_normal((count, VOCABULARY)) * 3).astype(np.float32)
    rows: list[SamplingRow | None] = []
    for k, sampling in enumerate(list(RULES.values()) * 20):
        rows.append(None if sampling == Sampling() else _row(sampling, k, rng))
    assert sum(row is None for row in rows) == 20
    compared, _ = _compare(run, reference, logits, rows)
    assert compared >= 0.95 * count


@pytest.mark.parametrize("vocabulary", [1, 2, 127, 128, 129, 4096, 5000])
def test_vocabularies_around_the_chunk(run: Any, reference: Any, vocabulary: int) -> None:
    rng = np.random.default_rng(vocabulary)
    logits = rng.standard_normal((40, vocabulary)).astype(np.float32)
    samplings = [
        Sampling(temperature=1.0),
        Sampling(temperature=1.0, top_p=0.9),
        Sampling(temperature=1.0, top_k=2000, top_p=0.9),
        Sampling(temperature=1.0, top_k=3),
    ]
    rows: list[SamplingRow | None] = [SamplingRow(samplings[k % 4], k, k) for k in range(40)]
    compared, _ = _compare(run, reference, logits, rows)
    assert compared >= 32


@pytest.mark.parametrize("name", ["min_p", "top_k", "top_p", "top_k_top_p", "all_with_penalties"])
def test_kept_set_and_probabilities(run: Any, reference: Any, name: str) -> None:
    """Processed logprobs of the whole vocabulary are the distribution that is drawn from."""
    rng = np.random.default_rng(3)
    logits = (rng.standard_normal((30, VOCABULARY)) * 2).astype(np.float32)
    fields = {f: getattr(RULES[name], f) for f in Sampling.__slots__}
    fields |= {"top_logprobs": VOCABULARY, "processed_logprobs": True}
    rows = [_row(Sampling(**fields), k, rng) for k in range(30)]
    _, details = run(logits, rows)
    for k, row in enumerate(rows):
        chosen = reference.row(logits[k], row)
        if chosen.margin < MARGIN:
            continue
        found = np.full(VOCABULARY, math.nan)
        for token, logprob in details[k].top:
            found[token] = logprob
        assert np.array_equal(np.isfinite(found), chosen.kept)
        assert np.allclose(found[chosen.kept], np.log(chosen.probabilities[chosen.kept]), atol=1e-5)


_SAMPLING = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.25, 1.0, 2.0]),
    top_k=st.sampled_from([0, 1, 3, 31, 32, 1000, 2**32 - 1]),
    top_p=st.sampled_from([1e-3, 0.3, 0.9, 1.0]),
    min_p=st.sampled_from([0.0, 0.01, 0.5, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 0.5, 2.0]),
    presence_penalty=st.sampled_from([0.0, -2.0, 2.0]),
    frequency_penalty=st.sampled_from([0.0, -2.0, 2.0]),
    logit_bias=st.sampled_from([(), ((0, 1.5),), ((7, -1e9), (8, 3.0))]),
    top_logprobs=st.sampled_from([None, 0, 2, 100]),
    processed_logprobs=st.booleans(),
)


@settings(
    derandomize=True, max_examples=60, deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(st.lists(st.none() | _SAMPLING, min_size=1, max_size=8), st.integers(0, 2**32))
def test_any_mix(run: Any, reference: Any, mix: list[Sampling | None], seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits = (rng.standard_normal((len(mix), 32)) * 2).astype(np.float32)
    rows = [
        None
        if sampling is None
        else SamplingRow(
            sampling, seed + k, k, rng.integers(0, 32, 5).astype(np.int32),
            rng.integers(0, 32, 5).astype(np.int32),
        )
        for k, sampling in enumerate(mix)
    ]  # fmt: skip
    _compare(run, reference, logits, rows)
