"""Rules 4 to 6 as one threshold per row: a token is kept where its logit is at least that."""

from __future__ import annotations

import mlx.core as mx

from mlxrt.engine.sampling.cumulative import first_reaching
from mlxrt.engine.sampling.rules import Draws, Truncation


def thresholds(scaled: mx.array, draws: Draws) -> mx.array | None:
    """Returns [R, 1] float32, the smallest logit that each row keeps; None where all rows keep all.

    min-p, top-k and top-p each keep a head of the tokens in descending order, with all that tie at
    its end; so the kept set is one comparison away. Logits are compared, not probabilities: equal
    logits are equal probabilities, and the rounding of exp makes no further ties.

    Args:
        scaled: [R, V] float32 after rules 1 to 3, the largest of a row 0.
        draws: the rows and their rules.
    """
    least = draws.log_min_p
    for group in draws.truncations:
        if group.rows is None:
            return _group_threshold(scaled, least, group)
        if least is None:
            least = mx.full((scaled.shape[0], 1), -mx.inf)
        found = _group_threshold(scaled[group.rows], least[group.rows], group)
        least = mx.put_along_axis(least, group.rows[:, None], found, axis=0)
    return least


def _group_threshold(scaled: mx.array, least: mx.array | None, group: Truncation) -> mx.array:
    """Applies rules 5 and 6 to [G, V] logits of which rule 4 keeps those from `least` [G, 1] on."""
    negated = -scaled
    if group.depth < scaled.shape[-1]:
        negated = mx.partition(negated, group.depth - 1, axis=-1)[:, : group.depth]
    descending = -mx.sort(negated, axis=-1)
    if group.top_k_index is not None:
        kth = mx.take_along_axis(descending, group.top_k_index, axis=-1)
        least = kth if least is None else mx.maximum(least, kth)
    elif least is None:
        least = descending[:, -1:]
    if group.top_p is None:
        return least
    weights = mx.where(descending >= least, mx.exp(descending), 0.0)
    total = None
    if group.depth < scaled.shape[-1]:
        # Tokens that tie with the last of the head lie outside it, but count in the sum.
        total = mx.sum(mx.where(scaled >= least, mx.exp(scaled), 0.0), axis=-1, keepdims=True)
    last = first_reaching(weights, group.top_p, inclusive=True, total=total)
    reached = mx.take_along_axis(descending, last, axis=-1)
    # The bound of rules 4 and 5 holds where rounding let the sum run on past it; and with top-p 1
    # the sum may reach the total too early.
    return mx.where(group.top_p < 1.0, mx.maximum(least, reached), least)
