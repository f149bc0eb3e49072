"""The seam: mlx-lm's module-level attention function, taught to ask a paged layer.

mlx-lm's modules import `scaled_dot_product_attention` by name, so it is replaced in the module of
each class found in the model. For any other cache the original runs, with the same arguments.
"""

from __future__ import annotations

import functools
import sys
import threading
from types import ModuleType
from typing import Any, Protocol

import mlx.core as mx
from mlx.nn.layers.base import Module

_NAME = "scaled_dot_product_attention"
_ORIGINAL = "_mlxrt_original"
_lock = threading.Lock()


class AttendingCache(Protocol):
    """A cache that does attention itself."""

    def attend(
        self, queries: mx.array, *, scale: float, mask: Any, sinks: mx.array | None
    ) -> mx.array:
        """Attention of `queries` over what the cache holds."""


def install_seam(model: Module) -> tuple[str, ...]:
    """Replaces the attention function in the modules of the model's classes. Idempotent.

    Returns:
        Names of the modules that now dispatch, sorted.
    """
    names = []
    with _lock:
        for module in _modules_of(model):
            original = getattr(module, _NAME)
            if not hasattr(original, _ORIGINAL):
                setattr(module, _NAME, _dispatcher(original))
            names.append(module.__name__)
    return tuple(names)


def uninstall_seam(model: Module) -> None:
    """Puts the originals back; no engine may run a model of the same classes. Idempotent."""
    with _lock:
        for module in _modules_of(model):
            function = getattr(module, _NAME)
            setattr(module, _NAME, getattr(function, _ORIGINAL, function))


def _modules_of(model: Module) -> list[ModuleType]:
    """Python modules of the model's classes that hold the function."""
    names = sorted({type(part).__module__ for part in model.modules()})  # type: ignore[no-untyped-call]
    return [sys.modules[name] for name in names if hasattr(sys.modules[name], _NAME)]


def _dispatcher(original: Any) -> Any:
    """A function that lets an attending cache attend and calls `original` for any other."""

    @functools.wraps(original)
    def dispatch(
        queries: mx.array,
        keys: Any,
        values: Any,
        cache: Any,
        scale: float,
        mask: Any,
        sinks: mx.array | None = None,
        **rest: Any,
    ) -> mx.array:
        if hasattr(cache, "attend"):
            attending: AttendingCache = cache
            return attending.attend(queries, scale=scale, mask=mask, sinks=sinks, **rest)
        output: mx.array = original(
            queries, keys, values, cache=cache, scale=scale, mask=mask, sinks=sinks, **rest
        )
        return output

    setattr(dispatch, _ORIGINAL, original)
    return dispatch
