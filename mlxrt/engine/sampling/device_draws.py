"""Rules 3 to 7 as the plain sampler's arrays: uploaded, and rows grouped by what they need."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from mlxrt.engine.sampling.rules import DrawRules, Draws, Truncation

# Where every top-k of a group is at most this, a selection of that many logits replaces the sort of
# the whole row.
SHORT_DEPTH = 1024


def device_draws(rules: DrawRules, count: int, vocabulary_size: int) -> Draws:
    """Uploads the rules of a batch of `count` rows."""
    return Draws(
        rows=None if len(rules.rows) == count else mx.array(rules.rows),
        temperature=None if (rules.temperature == 1.0).all() else _column(rules.temperature),
        uniform=_column(rules.uniform),
        log_min_p=_column(rules.log_min_p) if (rules.log_min_p > -np.inf).any() else None,
        truncations=_truncations(rules, vocabulary_size),
    )


def _column(values: npt.NDArray[np.float32]) -> mx.array:
    return mx.array(values[:, None])


def _truncations(rules: DrawRules, vocabulary_size: int) -> tuple[Truncation, ...]:
    """Groups the rows that need rules 5 or 6: a selection serves some, others need a sort."""
    short = (rules.top_k > 0) & (rules.top_k <= min(SHORT_DEPTH, vocabulary_size - 1))
    long = ~short & ((rules.top_k > 0) | (rules.top_p < 1.0))
    groups = []
    if short.any():
        groups.append(_truncation(short, rules, int(rules.top_k[short].max())))
    if long.any():
        groups.append(_truncation(long, rules, vocabulary_size))
    return tuple(groups)


def _truncation(members: npt.NDArray[np.bool_], rules: DrawRules, depth: int) -> Truncation:
    top_k, top_p = rules.top_k[members], rules.top_p[members]
    # A row of the group without top-k has the smallest logit as its threshold.
    index = np.where(top_k > 0, top_k, depth).astype(np.int32)[:, None] - np.int32(1)
    return Truncation(
        rows=None if members.all() else mx.array(np.flatnonzero(members).astype(np.int32)),
        depth=depth,
        top_k_index=mx.array(index) if top_k.any() else None,
        top_p=_column(top_p) if (top_p < 1.0).any() else None,
    )
