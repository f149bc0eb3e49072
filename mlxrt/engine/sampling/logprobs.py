"""Log probabilities of the sampled and of the most probable tokens."""

from __future__ import annotations

import mlx.core as mx

from mlxrt.engine.sampling.rules import LogprobGroup
from mlxrt.engine.sampling.sampled import LogprobArrays


def logprobs(group: LogprobGroup, source: mx.array, tokens: mx.array) -> LogprobArrays:
    """Builds the log softmax of the group's rows at the sampled and at the most probable tokens.

    Args:
        group: L rows.
        source: [n, V] logits, any float dtype; minus infinity where a token is excluded.
        tokens: [S] int32, the sampled tokens of the whole batch.
    """
    if group.source_indices is None:
        logits = source[: len(group.rows)]
    else:
        logits = source[group.source_indices]
    logits = logits.astype(mx.float32)
    normaliser = mx.logsumexp(logits, axis=-1, keepdims=True)
    chosen = mx.take_along_axis(logits, tokens[group.row_indices][:, None], axis=-1)
    # Logits rather than logprobs are compared: subtracting the normaliser could make ties.
    ranks = 1 + mx.sum(logits > chosen, axis=-1).astype(mx.int32)
    top_ids = top_values = None
    if group.depth:
        top_ids = _top(logits, group.depth)
        top_values = mx.minimum(mx.take_along_axis(logits, top_ids, axis=-1) - normaliser, 0.0)
    logprob = mx.minimum(chosen - normaliser, 0.0).squeeze(-1)
    return LogprobArrays(group, logprob, ranks, top_ids, top_values)


def _top(logits: mx.array, depth: int) -> mx.array:
    """Returns [L, depth] int32: tokens of the largest of [L, V], in order, ties by lower id."""
    vocabulary_size = logits.shape[-1]
    # Adding 0 turns -0 into 0: they are equal, their bits are not.
    bits = (logits + 0.0).view(mx.int32)
    # Order of the bits as integers = order of the floats; inverted, so that ascending is most
    # probable first.
    falling = mx.bitwise_invert(mx.where(bits < 0, bits ^ 0x7FFFFFFF, bits)).astype(mx.int64)
    # With the id in the low half no two keys are equal: the order depends on no sort's stability.
    keys = mx.left_shift(falling, mx.array(32, mx.int64)) | mx.arange(
        vocabulary_size, dtype=mx.int64
    )
    if depth < vocabulary_size:
        keys = mx.partition(keys, depth - 1, axis=-1)[:, :depth]
    return (mx.sort(keys, axis=-1) & 0xFFFFFFFF).astype(mx.int32)
