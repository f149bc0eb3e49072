"""vLLM's scheduler over an mlxrt server.

vLLM takes `mlxrt_vllm.MlxrtExecutor` by its name (`--distributed-executor-backend`); importing this
package alone imports no vLLM.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlxrt_vllm.executor import MlxrtExecutor

__all__ = ["MlxrtExecutor"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from mlxrt_vllm import executor

        return getattr(executor, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
