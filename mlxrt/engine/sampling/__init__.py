"""Sampling: one token per row of logits, on the device, as mlxrt/v1/sampling.proto defines it."""

from mlxrt.engine.sampling.batch import SamplingBatch, SamplingRow, is_plain_greedy
from mlxrt.engine.sampling.choice import ChosenSampler, choose_sampler
from mlxrt.engine.sampling.draw_lines import DrawLines
from mlxrt.engine.sampling.sample import sample
from mlxrt.engine.sampling.sampled import Sampled
from mlxrt.engine.sampling.sampler import PlainSampler, Sampler
from mlxrt.engine.sampling.uniform import uniform

__all__ = [
    "ChosenSampler",
    "DrawLines",
    "PlainSampler",
    "Sampled",
    "Sampler",
    "SamplingBatch",
    "SamplingRow",
    "choose_sampler",
    "is_plain_greedy",
    "sample",
    "uniform",
]
