"""Which sampler serves the engine."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx

from mlxrt.engine.sampling.sampler import PlainSampler, Sampler


@dataclass(frozen=True, slots=True)
class ChosenSampler:
    """What was chosen.

    Attributes:
        reason: why the native sampler was not taken although it was wanted; else empty.
    """

    sampler: Sampler
    reason: str


def choose_sampler(wants_native: bool, vocabulary_size: int, dtype: mx.Dtype) -> ChosenSampler:
    """Makes the native sampler where it is wanted and the device has a kernel for such logits; it
    is tried on two rows, on the calling (the engine's) thread.
    """
    if not wants_native:
        return ChosenSampler(PlainSampler(), "")
    try:
        from mlxrt import kernels
        from mlxrt.engine.sampling.native import NativeSampler

        rules = mx.array([[1.0, 1.0, 0.5, 1.0, 0.5]], mx.float32)
        mx.eval(kernels.sample(mx.zeros((2, vocabulary_size), dtype), rules))
    except (ImportError, RuntimeError, ValueError) as error:
        return ChosenSampler(PlainSampler(), str(error))
    return ChosenSampler(NativeSampler(), "")
