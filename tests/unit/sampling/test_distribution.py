"""The drawn distribution: 20,000 draws over positions against the reference's probabilities."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mlxrt.core.sampling import Sampling
from mlxrt.engine.sampling import SamplingRow

DRAWS = 20_000
RULES = {
    "plain": Sampling(temperature=1.0),
    "cool": Sampling(temperature=0.5),
    "hot": Sampling(temperature=2.5),
    "min_p": Sampling(temperature=1.0, min_p=0.1),
    "top_k": Sampling(temperature=1.0, top_k=12),
    "top_p": Sampling(temperature=1.0, top_p=0.75),
    "all": Sampling(
        temperature=1.3, min_p=0.02, top_k=20, top_p=0.9, logit_bias=((1, 1.0),),
        repetition_penalty=1.2, frequency_penalty=0.2,
    ),
}  # fmt: skip


@pytest.mark.parametrize("seed", [0, 77])
@pytest.mark.parametrize("name", RULES)
def test_chi_square(run: Any, reference: Any, name: str, seed: int) -> None:
    logits = np.random.default_rng(10).standard_normal(64).astype(np.float32) * 1.5
    history = np.array([1, 2, 2, 3], np.int32)
    rows = [SamplingRow(RULES[name], seed, k, history, history) for k in range(DRAWS)]
    tokens, _ = run(np.tile(logits, (DRAWS, 1)), rows)
    chosen = reference.row(logits, rows[0])
    counts = np.bincount(tokens, minlength=64)
    assert not counts[~chosen.kept].any()
    expected = chosen.probabilities * DRAWS
    # Rare tokens are pooled, as the test's approximation wants 5 or more per cell.
    common = expected >= 5
    observed = [*counts[common], counts[~common].sum()]
    wanted = [*expected[common], expected[~common].sum()]
    cells = [(o, w) for o, w in zip(observed, wanted, strict=True) if w > 0]
    statistic = sum((o - w) ** 2 / w for o, w in cells)
    freedom = len(cells) - 1
    # Wilson and Hilferty: the cube root is close to normal; 3.7 standard deviations are p = 1e-4.
    spread = (2 / (9 * freedom)) ** 0.5
    deviation = ((statistic / freedom) ** (1 / 3) - (1 - spread**2)) / spread
    assert deviation < 3.7, (statistic, freedom)


def test_large_flat_vocabulary_is_drawn_evenly(run: Any, reference: Any) -> None:
    """150,000 like logits: a plain float32 running sum would drift away from u."""
    vocabulary = 150_000
    rng = np.random.default_rng(11)
    logits = (rng.standard_normal((8, vocabulary)) * 1e-3).astype(np.float32)
    rows = [SamplingRow(Sampling(temperature=1.0), 5, k) for k in range(8)]
    tokens, _ = run(logits, rows)
    for k, token in enumerate(tokens):
        sums = np.cumsum(reference.softmax(logits[k].astype(np.float64)))
        u = reference.uniform(5, k)
        assert abs(sums[token] - u) < 2e-5
