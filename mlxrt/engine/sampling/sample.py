"""Samples a step: logits and rules in, lazy tokens out. Nothing here waits for the device."""

from __future__ import annotations

import mlx.core as mx

from mlxrt.engine.sampling.adjustment import adjust
from mlxrt.engine.sampling.batch import SamplingBatch
from mlxrt.engine.sampling.logprobs import logprobs
from mlxrt.engine.sampling.rules import LogprobGroup
from mlxrt.engine.sampling.sampled import LogprobArrays, Sampled
from mlxrt.engine.sampling.sampler import Picked, Sampler


def sample(
    logits: mx.array,
    batch: SamplingBatch,
    pending_tokens: mx.array | None = None,
    *,
    sampler: Sampler,
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
        sampler: who applies rules 3 to 7.

    Raises:
        ValueError: fewer rows of logits than the batch has, or pending tokens named but not given.
    """
    if logits.shape[0] < batch.count:
        raise ValueError(f"{logits.shape[0]} rows of logits for {batch.count} sampled rows")
    adjusted = adjust(logits, batch, pending_tokens)
    picked = sampler.pick(adjusted, batch)
    # What rules 1 and 2 or a mask made of the logits says nothing of the model's own.
    finite = picked.finite if adjusted is logits else None
    described = _logprobs(logits, adjusted, picked, batch)
    return Sampled(
        batch.count,
        picked.tokens,
        _finite(logits) if finite is None else finite,
        described,
        batch.barred,
    )


def _finite(logits: mx.array) -> mx.array:
    # Both reductions propagate NaN, read the logits as they are and need no scratch of their size.
    largest = mx.max(logits, axis=-1)
    return mx.logical_and(largest < mx.inf, mx.min(logits, axis=-1) > -mx.inf)


def _logprobs(
    logits: mx.array,
    adjusted: mx.array,
    picked: Picked,
    batch: SamplingBatch,
) -> tuple[LogprobArrays, ...]:
    sources: list[tuple[LogprobGroup | None, mx.array | None]] = [
        (batch.raw_logprobs, logits),
        (batch.greedy_logprobs, adjusted),
        (batch.drawn_logprobs, picked.kept),
    ]
    return tuple(
        logprobs(group, source, picked.tokens)
        for group, source in sources
        if group is not None and source is not None
    )
