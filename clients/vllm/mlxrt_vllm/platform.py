"""The platform that vLLM runs on when it executes elsewhere: no device, no kernels."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import torch
from vllm import envs
from vllm.platforms.interface import Platform, PlatformEnum

from mlxrt_vllm.settings import VARIABLES, refuse_unknown

if TYPE_CHECKING:
    from vllm.config import VllmConfig

BACKEND = "mlxrt_vllm.MlxrtExecutor"


class MlxrtPlatform(Platform):
    """The forward pass runs on an mlxrt server; what torch does here, it does on the CPU."""

    _enum = PlatformEnum.OOT
    device_name = "mlxrt"
    device_type = "cpu"
    dispatch_key = "CPU"
    dist_backend = "gloo"

    def is_cpu(self) -> bool:
        """True: vLLM then leaves accelerators alone, of which there are none."""
        return True

    @classmethod
    def get_device_name(cls, device_id: int = 0) -> str:
        """The name in vLLM's logs."""
        return cls.device_name

    @classmethod
    def get_device_total_memory(cls, device_id: int = 0) -> int:
        """0: the memory is the server's."""
        return 0

    @classmethod
    def get_current_memory_usage(cls, device: Any = None) -> float:
        """0: the memory is the server's."""
        return 0.0

    @classmethod
    def inference_mode(cls) -> Any:
        """No gradients."""
        return torch.no_grad()

    @classmethod
    def set_device(cls, device: torch.device) -> None:
        """Does nothing."""

    @classmethod
    def manual_seed_all(cls, seed: int) -> None:
        """Does nothing: random numbers are drawn by the server."""

    @classmethod
    def import_kernels(cls) -> None:
        """Does nothing."""

    @classmethod
    def import_ir_kernels(cls) -> None:
        """Does nothing."""

    @classmethod
    def is_pin_memory_available(cls) -> bool:
        """False: there is no device to copy to."""
        return False

    @classmethod
    def support_hybrid_kv_cache(cls) -> bool:
        """True: windows are groups of their own on the server too."""
        return True

    @classmethod
    def update_block_size_for_backend(cls, vllm_config: VllmConfig) -> None:
        """Does nothing: the block size is the server's."""

    @classmethod
    def validate_environ(cls, hard_fail: bool) -> None:
        """As vLLM does, knowing this package's variables; a misspelt one of those is refused.

        Raises:
            ValueError: a variable that begins with `VLLM_MLXRT_`, or with `hard_fail` one that
                begins with `VLLM_`, means nothing.
        """
        refuse_unknown(os.environ)
        if hard_fail:
            foreign = [name for name in os.environ if name.startswith("VLLM_")]
            unknown = set(foreign) - set(envs.environment_variables) - VARIABLES
            if unknown:
                raise ValueError(f"unknown environment variables of vLLM: {sorted(unknown)}")

    @classmethod
    def get_kv_cache_config_builder_cls(cls, vllm_config: VllmConfig) -> str:
        """The class that takes the server's groups as they are."""
        return "mlxrt_vllm.cache_config.ServerCacheConfigBuilder"

    @classmethod
    def check_and_update_config(cls, vllm_config: VllmConfig) -> None:
        """Refuses by name what mlxrt does not execute.

        Raises:
            ValueError: with every reason.
        """
        from mlxrt_vllm import refusals  # it needs vllm.config, which imports this module first

        refusals.check_config(vllm_config)
        # vLLM asks the platform for a worker's class; none is ever made.
        vllm_config.parallel_config.worker_cls = "mlxrt_vllm.platform.NoWorker"

    @classmethod
    def validate_request(cls, processed_inputs: Any, params: Any) -> None:
        """Refuses by name what a request asks for and mlxrt does not serve.

        Raises:
            VLLMValidationError: with every reason; vLLM's server answers 400 with it.
        """
        from mlxrt_vllm import refusals

        refusals.check_request(params)


class NoWorker:
    """Stands where vLLM wants the name of a worker's class."""

    def __init__(self, *_: Any, **__: Any) -> None:
        """Raises RuntimeError: the server is the worker."""
        raise RuntimeError(
            f"mlxrt has no workers in vLLM: use --distributed-executor-backend {BACKEND}"
        )
