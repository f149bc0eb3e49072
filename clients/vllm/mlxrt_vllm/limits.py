"""Holds vLLM's configuration against what the server declares."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from mlxrt_client import v1

from mlxrt_vllm.refusals import refuse

if TYPE_CHECKING:
    from vllm.config import VllmConfig

logger = logging.getLogger("vllm.mlxrt")


def lower(config: VllmConfig, limits: v1.Limits) -> None:
    """Lowers what vLLM puts into a step to what the server takes, and says so.

    vLLM's own defaults are larger than most servers' limits.
    """
    scheduler = config.scheduler_config
    for name, maximum in (
        ("max_num_batched_tokens", limits.max_step_rows),
        ("max_num_seqs", limits.max_step_sequences),
    ):
        value = getattr(scheduler, name)
        if value > maximum:
            logger.warning("%s lowered from %d to the server's limit, %d", name, value, maximum)
            setattr(scheduler, name, maximum)


def check(
    config: VllmConfig, server: v1.GetServerInfoResponse, model: v1.GetModelInfoResponse
) -> None:
    """Refuses a configuration that the server's limits or its model do not allow.

    Raises:
        ValueError: with every reason, each by the name of vLLM's option.
    """
    ours, limits = config.model_config, server.limits
    logprobs = ours.get_vocab_size() if ours.max_logprobs == -1 else ours.max_logprobs
    reasons = [
        f"{option} {value}: the server allows {maximum}"
        for option, value, maximum in (
            ("--max-model-len", ours.max_model_len, model.max_model_length),
            ("--max-logprobs", logprobs, limits.max_top_logprobs),
        )
        if value > maximum
    ]
    if ours.get_vocab_size() != model.vocabulary_size:
        reasons.append(
            f"the model has {ours.get_vocab_size()} tokens, the server's {model.model_name} has "
            f"{model.vocabulary_size}: give vLLM the checkpoint that the server runs"
        )
    cache = config.cache_config
    if cache.user_specified_block_size and cache.block_size != model.block_size:
        reasons.append(f"--block-size {cache.block_size}: the server's is {model.block_size}")
    refuse(f"vLLM does not fit the mlxrt server ({model.model_name})", reasons)
