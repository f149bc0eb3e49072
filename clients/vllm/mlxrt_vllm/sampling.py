"""vLLM's sampling parameters as mlxrt's. The rules and their order are the same in both."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlxrt_client import v1

if TYPE_CHECKING:
    from vllm.sampling_params import SamplingParams

SEED_MASK = (1 << 64) - 1
GREEDY_BELOW = 1e-5
"""vLLM takes temperatures below this for greedy (vllm.sampling_params)."""

MODES = {
    "raw_logprobs": v1.LogprobsMode.LOGPROBS_MODE_RAW,
    "processed_logprobs": v1.LogprobsMode.LOGPROBS_MODE_PROCESSED,
}


def sampling_params(params: SamplingParams, logprobs_mode: str) -> v1.SamplingParams:
    """Returns what the server needs to know of `params`; stopping is vLLM's affair."""
    greedy = params.temperature < GREEDY_BELOW
    sampling = v1.SamplingParams(temperature=0.0 if greedy else params.temperature)
    if not greedy:
        if params.top_k > 0:
            sampling.top_k = params.top_k
        if params.top_p < 1:
            sampling.top_p = params.top_p
        if params.min_p > 0:
            sampling.min_p = params.min_p
    if params.repetition_penalty != 1:
        sampling.repetition_penalty = params.repetition_penalty
    if params.presence_penalty:
        sampling.presence_penalty = params.presence_penalty
    if params.frequency_penalty:
        sampling.frequency_penalty = params.frequency_penalty
    for token_id, bias in (params.logit_bias or {}).items():
        sampling.logit_bias.add(token_id=int(token_id), bias=bias)
    if params.seed is not None:
        sampling.seed = params.seed & SEED_MASK
    if params.logprobs is not None:
        sampling.top_logprobs = params.logprobs
        sampling.logprobs_mode = MODES[logprobs_mode]
    return sampling
