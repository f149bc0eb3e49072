"""What vLLM can be asked for and mlxrt does not execute: refused at start, or per request."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm import envs
from vllm.exceptions import VLLMValidationError
from vllm.v1.executor.abstract import Executor

if TYPE_CHECKING:
    from vllm.config import VllmConfig

LOGPROBS_MODES = ("raw_logprobs", "processed_logprobs")


def check_config(config: VllmConfig) -> None:
    """Refuses a configuration that needs what mlxrt does not execute.

    Raises:
        ValueError: with every reason, each by the name of the option at fault.
    """
    refuse("mlxrt can't execute this configuration", [*_parallel(config), *_features(config)])


def check_request(params: Any) -> None:
    """Refuses a request that asks for what mlxrt does not serve.

    Raises:
        VLLMValidationError: with every reason, each by the name of the sampling parameter; vLLM's
            server answers 400 with it.
    """
    reasons = _request_reasons(params)
    if reasons:
        raise VLLMValidationError("mlxrt does not serve this request: " + "; ".join(reasons))


def refuse(title: str, reasons: list[str]) -> None:
    """Raises ValueError where there are reasons."""
    if reasons:
        raise ValueError(f"{title}: " + "; ".join(reasons))


def _parallel(config: VllmConfig) -> list[str]:
    parallel = config.parallel_config
    reasons = [
        f"{name} is {value}: only 1 is supported, the server is one device"
        for name, value in (
            ("tensor_parallel_size", parallel.tensor_parallel_size),
            ("pipeline_parallel_size", parallel.pipeline_parallel_size),
            ("data_parallel_size", parallel.data_parallel_size),
            ("decode_context_parallel_size", parallel.decode_context_parallel_size),
            ("prefill_context_parallel_size", parallel.prefill_context_parallel_size),
        )
        if value != 1
    ]
    executor = Executor.get_class(config)
    if executor.__module__ != "mlxrt_vllm.executor":
        reasons.append(
            f"distributed_executor_backend is {parallel.distributed_executor_backend!r}: use "
            "mlxrt_vllm.MlxrtExecutor, or unset VLLM_MLXRT_ADDRESS to run without mlxrt"
        )
    if envs.VLLM_USE_V2_MODEL_RUNNER:
        reasons.append("VLLM_USE_V2_MODEL_RUNNER is 1: the adapter speaks the first one's protocol")
    return reasons


def _features(config: VllmConfig) -> list[str]:
    reasons = []
    model = config.model_config
    if config.lora_config is not None:
        reasons.append("enable_lora: LoRA adapters are not supported")
    if config.kv_transfer_config is not None:
        reasons.append("kv_transfer_config: KV connectors are not supported")
    if config.ec_transfer_config is not None:
        reasons.append("ec_transfer_config: encoder cache connectors are not supported")
    if config.diffusion_config is not None:
        reasons.append("diffusion models are not supported")
    speculative = config.speculative_config
    if speculative is not None and speculative.method != "ngram":
        reasons.append(f"speculative method {speculative.method!r}: only 'ngram' is supported")
    if model is None:
        return reasons
    if model.runner_type != "generate":
        reasons.append(f"runner {model.runner_type!r}: pooling models are not supported")
    if model.is_multimodal_model and not model.multimodal_config.language_model_only:
        reasons.append("multimodal model: pass --language-model-only where it has text alone")
    if model.is_encoder_decoder:
        reasons.append("encoder-decoder models are not supported")
    if model.enable_prompt_embeds:
        reasons.append("enable_prompt_embeds: embeddings in place of tokens are not supported")
    if model.logprobs_mode not in LOGPROBS_MODES:
        reasons.append(f"logprobs_mode {model.logprobs_mode!r}: use one of {LOGPROBS_MODES}")
    if model.logits_processors:
        reasons.append("logits_processors: the server samples, custom ones can't run")
    if model.enable_sleep_mode:
        reasons.append("enable_sleep_mode: the server's weights are not vLLM's to unload")
    return reasons


def _request_reasons(params: Any) -> list[str]:
    if not hasattr(params, "temperature"):
        return ["pooling is not supported"]
    reasons = [
        f"{name} is not supported"
        for name in (
            "bad_words",
            "allowed_token_ids",
            "min_tokens",
            "logprob_token_ids",
            "thinking_token_budget",
            "trace_decode_token_ids",
        )
        if getattr(params, name)
    ]
    if params.prompt_logprob_token_ids is not None:
        reasons.append("prompt_logprob_token_ids is not supported")
    if params.logprobs == -1 or params.prompt_logprobs == -1:
        reasons.append("logprobs of the whole vocabulary (-1) are not supported")
    for name in ("presence_penalty", "frequency_penalty"):
        if not -2 <= getattr(params, name) <= 2:
            reasons.append(f"{name} must lie between -2 and 2")
    return reasons
