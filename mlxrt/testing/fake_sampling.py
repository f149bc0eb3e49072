"""The contract's seven sampling rules (mlxrt.v1.SamplingParams) in NumPy, for one row of logits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mlxrt.core.sampling import Sampling
from mlxrt.core.step import SampledRow
from mlxrt.testing.fake_model import GOLDEN, mix

_MASK = (1 << 64) - 1
Row = npt.NDArray[np.float64]


def uniform(seed: int, position: int) -> float:
    """u(seed, position) of the contract, in [0, 1)."""
    return (mix((mix(seed & _MASK) + (position + 1) * GOLDEN) & _MASK) >> 40) * 2.0**-24


def sample_row(
    raw: npt.NDArray[np.float32],
    rules: Sampling,
    seed: int,
    prompt: Sequence[int],
    generated: Sequence[int],
    allowed: npt.NDArray[np.bool_] | None = None,
) -> SampledRow:
    """Samples the token after `prompt` and `generated` and describes it as the rules ask.

    Args:
        allowed: [vocabulary_size], the mask, at least one token allowed; None for all.
    """
    logits = raw.astype(np.float64)
    for token_id, bias in rules.logit_bias:
        logits[token_id] += bias
    if rules.penalised:
        _penalise(logits, rules, prompt, generated)
    if allowed is not None:
        logits[~allowed] = -np.inf
    if rules.temperature == 0:
        token = int(logits.argmax())
        processed = logits
    else:
        processed = _filtered(logits / rules.temperature, rules)
        drawn = np.cumsum(np.exp(_log_softmax(processed)))
        past = np.flatnonzero(drawn > uniform(seed, len(prompt) + len(generated)))
        token = int(past[0]) if past.size else int(np.flatnonzero(np.isfinite(processed))[-1])
    row = SampledRow(token=token)
    if rules.top_logprobs is not None:
        logprobs = _log_softmax(processed if rules.processed_logprobs else raw.astype(np.float64))
        row.logprob = float(logprobs[token])
        if rules.top_logprobs:
            order = np.lexsort((np.arange(logprobs.size), -logprobs))[: rules.top_logprobs]
            row.top = [(int(i), float(logprobs[i])) for i in order]
            row.rank = 1 + int((logprobs > logprobs[token]).sum())
    return row


def describe_token(
    raw: npt.NDArray[np.float32], token: int, top_count: int
) -> tuple[float, int, list[tuple[int, float]]]:
    """Of a token after a row of logits: its logprob, its rank, and the most probable tokens."""
    logprobs = _log_softmax(raw.astype(np.float64))
    order = np.lexsort((np.arange(logprobs.size), -logprobs))[:top_count] if top_count else ()
    top = [(int(i), float(logprobs[i])) for i in order]
    return float(logprobs[token]), 1 + int((logprobs > logprobs[token]).sum()), top


def _penalise(
    logits: Row, rules: Sampling, prompt: Sequence[int], generated: Sequence[int]
) -> None:
    """Rule 2, in place."""
    seen = np.unique(np.array([*prompt, *generated], np.int64))
    values = logits[seen]
    logits[seen] = np.where(
        values > 0, values / rules.repetition_penalty, values * rules.repetition_penalty
    )
    tokens, counts = np.unique(np.array(generated, np.int64), return_counts=True)
    logits[tokens] -= rules.frequency_penalty * counts + rules.presence_penalty


def _filtered(logits: Row, rules: Sampling) -> Row:
    """Rules 4 to 6: minus infinity for the tokens that they exclude."""
    kept = logits.copy()
    if rules.min_p > 0:
        kept[logits < logits.max() + np.log(rules.min_p)] = -np.inf
    if 0 < rules.top_k < kept.size:
        kept[kept < np.sort(kept)[-rules.top_k]] = -np.inf
    if rules.top_p < 1:
        probabilities = np.exp(_log_softmax(kept))
        descending = np.sort(probabilities)[::-1]
        reached = np.searchsorted(np.cumsum(descending), rules.top_p)
        threshold = descending[min(int(reached), descending.size - 1)]
        kept[probabilities < threshold] = -np.inf
    return kept


def _log_softmax(logits: Row) -> Row:
    shifted = logits - logits.max()
    with np.errstate(divide="ignore"):
        logprobs: Row = shifted - np.log(np.exp(shifted).sum())
    return logprobs
