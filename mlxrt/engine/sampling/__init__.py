"""Sampling: one token per row of logits, on the device, as mlxrt/v1/sampling.proto defines it."""

from mlxrt.engine.sampling.batch import SamplingBatch, SamplingRow, is_plain_greedy
from mlxrt.engine.sampling.sample import sample
from mlxrt.engine.sampling.sampled import Sampled
from mlxrt.engine.sampling.uniform import uniform

__all__ = ["Sampled", "SamplingBatch", "SamplingRow", "is_plain_greedy", "sample", "uniform"]
