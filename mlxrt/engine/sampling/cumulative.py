"""Where a running sum of weights reaches a share of their total."""

from __future__ import annotations

import mlx.core as mx

# Sums run over chunks, then inside one: the rounding error grows with V / CHUNK + CHUNK instead of
# V, and only one chunk of a row is ever summed up element by element. 128 divides most
# vocabularies.
CHUNK = 128


def first_reaching(
    weights: mx.array, share: mx.array, *, inclusive: bool, total: mx.array | None = None
) -> mx.array:
    """Finds, in each row, the first index at which the running sum passes `share` of the total.

    Where rounding lets no sum pass, it is the last index of positive weight; where no weight is
    positive, 0. An index of weight 0 is never the answer otherwise.

    Args:
        weights: [R, N] float32, 0 or more.
        share: [R, 1] float32, 0 to 1.
        inclusive: the sum must reach the share (>=) rather than exceed it (>).
        total: [R, 1] float32; None for the sum of the weights.

    Returns:
        [R, 1] int32.
    """
    row_count, length = weights.shape
    if length % CHUNK:
        weights = mx.pad(weights, [(0, 0), (0, -length % CHUNK)])
    chunks = weights.reshape(row_count, -1, CHUNK)
    sums = mx.sum(chunks, axis=-1)
    before = mx.cumsum(sums, axis=-1, inclusive=False)
    after = before + sums
    target = share * (after[:, -1:] if total is None else total)
    chunk = _first(sums, after, target, inclusive)
    inner = mx.take_along_axis(chunks, chunk[:, :, None], axis=1).squeeze(1)
    base = mx.take_along_axis(before, chunk, axis=-1)
    offset = _first(inner, base + mx.cumsum(inner, axis=-1), target, inclusive)
    return chunk * CHUNK + offset


def _first(weights: mx.array, sums: mx.array, target: mx.array, inclusive: bool) -> mx.array:
    """Returns [R, 1] int32: the first index of positive weight to pass, else the last such."""
    length = weights.shape[-1]
    index = mx.arange(length)
    positive = weights > 0
    passes = sums >= target if inclusive else sums > target
    # A parallel scan may be off by a bit from one index to the next; a weight of 0 must not be
    # chosen for that.
    key = mx.where(positive, mx.where(passes, 2 * length - index, index), -1)
    return mx.argmax(key, axis=-1, keepdims=True).astype(mx.int32)
