"""Rules 1 and 2, logit bias and penalties, and the mask after them."""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from mlxrt.engine.sampling.batch import SamplingBatch
from mlxrt.engine.sampling.rules import Masks, Penalties

_LARGEST = float(np.finfo(np.float32).max)


def adjust(logits: mx.array, batch: SamplingBatch, pending_tokens: mx.array | None) -> mx.array:
    """Applies rules 1 and 2 and the masks to [S, V] logits.

    They keep their dtype where no row needs either rule, else they become float32. A sum or product
    past float32's range becomes the largest finite value of its sign, so that later rules see no
    infinity.

    Raises:
        ValueError: pending tokens named but not given.
    """
    if batch.biases is not None or batch.penalties is not None:
        logits = _apply_rules(logits, batch, pending_tokens)
    return logits if batch.masks is None else _forbid(logits, batch.masks)


def _forbid(logits: mx.array, masks: Masks) -> mx.array:
    """Makes the logits of tokens that are not allowed minus infinity."""
    bits = mx.right_shift(masks.words[:, :, None], mx.arange(32, dtype=mx.uint32))
    allowed = (bits & mx.array(1, mx.uint32)).reshape(bits.shape[0], -1)[:, : logits.shape[-1]]
    forbidden = mx.array(-mx.inf, logits.dtype)
    masked = mx.where(allowed.astype(mx.bool_), logits[masks.rows], forbidden)
    return mx.put_along_axis(logits, masks.rows[:, None], masked, axis=0)


def _apply_rules(
    logits: mx.array, batch: SamplingBatch, pending_tokens: mx.array | None
) -> mx.array:
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
