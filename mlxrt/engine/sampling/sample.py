"""Samples a step: logits and rules in, lazy tokens out. Nothing here waits for the device."""

from __future__ import annotations

import mlx.core as mx

from mlxrt.engine.sampling.adjustment import adjust
from mlxrt.engine.sampling.batch import SamplingBatch
from mlxrt.engine.sampling.draw import Drawn, draw
from mlxrt.engine.sampling.logprobs import logprobs
from mlxrt.engine.sampling.rules import LogprobGroup
from mlxrt.engine.sampling.sampled import LogprobArrays, Sampled


def sample(
    logits: mx.array, batch: SamplingBatch, pending_tokens: mx.array | None = None
) -> Sampled:
    """Builds the graph that samples one token per row, as mlxrt/v1/sampling.proto defines it.

    Rows never touch each other: a row of NaN or infinite logits is reported in `finite` and leaves
    its mates as they are. Must run on the MLX thread.

    Args:
        logits: [S, V] float32, float16 or bfloat16, S at least `batch.count`; rows past it are
            padding and sampled greedily.
        batch: the rules; built for the same V.
        pending_tokens: [n] int32, generated tokens that are still on the device; needed where a row
            names some.

    Raises:
        ValueError: fewer rows of logits than the batch has, or pending tokens named but not given.
    """
    if logits.shape[0] < batch.count:
        raise ValueError(f"{logits.shape[0]} rows of logits for {batch.count} sampled rows")
    # Both reductions propagate NaN, read the logits as they are and need no scratch of their size.
    largest = mx.max(logits, axis=-1)
    finite = mx.logical_and(largest < mx.inf, mx.min(logits, axis=-1) > -mx.inf)
    adjusted = adjust(logits, batch, pending_tokens)
    drawn = None if batch.draws is None else draw(adjusted, batch.draws)
    tokens = _tokens(adjusted, drawn, batch)
    described = _logprobs(logits, adjusted, drawn, tokens, batch)
    return Sampled(batch.count, tokens, finite, described, batch.barred)


def _tokens(adjusted: mx.array, drawn: Drawn | None, batch: SamplingBatch) -> mx.array:
    """Merges greedy and drawn tokens: [S] int32."""
    row_count = adjusted.shape[0]
    if drawn is not None and batch.all_drawn and row_count == batch.count:
        return drawn.tokens
    tokens = mx.argmax(adjusted, axis=-1).astype(mx.int32)
    if drawn is None or batch.draws is None:
        return tokens
    rows = mx.arange(batch.count) if batch.draws.rows is None else batch.draws.rows
    return mx.put_along_axis(tokens, rows, drawn.tokens, axis=0)


def _logprobs(
    logits: mx.array,
    adjusted: mx.array,
    drawn: Drawn | None,
    tokens: mx.array,
    batch: SamplingBatch,
) -> tuple[LogprobArrays, ...]:
    sources: list[tuple[LogprobGroup | None, mx.array | None]] = [
        (batch.raw_logprobs, logits),
        (batch.greedy_logprobs, adjusted),
        (batch.drawn_logprobs, None if drawn is None else drawn.kept),
    ]
    return tuple(
        logprobs(group, source, tokens)
        for group, source in sources
        if group is not None and source is not None
    )
