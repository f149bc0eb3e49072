"""Rules 1 and 2: logit bias and penalties."""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from mlxrt.engine.sampling.batch import SamplingBatch
from mlxrt.engine.sampling.rules import Penalties

_LARGEST = float(np.finfo(np.float32).max)


def adjust(logits: mx.array, batch: SamplingBatch, pending_tokens: mx.array | None) -> mx.array:
    """Applies rules 1 and 2 to [S, V] logits.

    They are returned as they are where no row needs either rule, else in float32. A sum or product
    past float32's range becomes the largest finite value of its sign, so that later rules see no
    infinity.

    Raises:
        ValueError: pending tokens named but not given.
    """
    if batch.biases is None and batch.penalties is None:
        return logits
    adjusted = logits.astype(mx.float32)
    if batch.biases is not None:
        biases = batch.biases
        adjusted = adjusted.at[biases.rows, biases.tokens].add(biases.amounts)
    if batch.penalties is not None:
        penalised = _penalise(adjusted[batch.penalties.rows], batch.penalties, pending_tokens)
        adjusted[batch.penalties.rows] = penalised
    return mx.clip(adjusted, -_LARGEST, _LARGEST)


def _penalise(logits: mx.array, penalties: Penalties, pending_tokens: mx.array | None) -> mx.array:
    """Applies rule 2 to [P, V] float32 logits."""
    # Counts are small integers, exact in float32 whatever the order in which the device adds them.
    generated = mx.zeros(logits.shape, mx.float32)
    if penalties.generated_owners is not None:
        generated = generated.at[penalties.generated_owners, penalties.generated_tokens].add(1.0)
    if penalties.pending_owners is not None:
        if pending_tokens is None:
            raise ValueError("rows name pending tokens, none were given")
        tokens = pending_tokens[penalties.pending_indices]
        generated = generated.at[penalties.pending_owners, tokens].add(1.0)
    was_generated = generated > 0
    seen = was_generated
    if penalties.prompt_owners is not None:
        prompt = mx.zeros(logits.shape, mx.bool_)
        prompt[penalties.prompt_owners, penalties.prompt_tokens] = True
        seen = mx.logical_or(seen, prompt)
    # One factor per row: where no repetition penalty is asked for it is 1 and changes nothing.
    repeated = mx.where(logits > 0, logits / penalties.repetition, logits * penalties.repetition)
    logits = mx.where(seen, repeated, logits)
    counted = penalties.frequency * generated
    return logits - (counted + mx.where(was_generated, penalties.presence, 0.0))
