"""vLLM's engine in this process, over servers in processes of their own."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from serving import BUNDLED, Server, serving

os.environ.update(
    VLLM_ENABLE_V1_MULTIPROCESSING="0",  # the engine in this process, where its counts can be read
    VLLM_NO_USAGE_STATS="1",
    HF_HUB_OFFLINE="1",
    VLLM_MLXRT_ADDRESS="unix:/nowhere",  # before vLLM is imported: it makes mlxrt the platform
)


@pytest.fixture(scope="session")
def bundled_server() -> Iterator[Server]:
    """A server of the bundled model."""
    with serving("--model", str(BUNDLED), "--num-blocks", "600") as server:
        yield server


@pytest.fixture
def make_llm(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Makes vLLM engines over a server; shuts them down after the test."""
    from vllm import LLM

    made: list[Any] = []

    def make(server: Server, model: Path = BUNDLED, **options: Any) -> Any:
        monkeypatch.setenv("VLLM_MLXRT_ADDRESS", server.address)
        options = {
            "distributed_executor_backend": "mlxrt_vllm.MlxrtExecutor",
            "max_model_len": 512,
            "max_num_seqs": 16,
            "max_num_batched_tokens": 64,
            "async_scheduling": False,
            "disable_log_stats": False,
        } | options
        made.append(LLM(model=str(model), **options))
        return made[-1]

    yield make
    for llm in made:
        llm.llm_engine.engine_core.shutdown()
