"""Loads a checkpoint with mlx-lm's own loader. The engine's thread only."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.nn.layers.base import Module

from mlxrt.models.checkpoint import Checkpoint
from mlxrt.models.errors import ModelError


@contextlib.contextmanager
def _file_limit_kept() -> Iterator[None]:
    """Keeps an import from lowering the limit of open files, hard limit included, as mlx_lm.utils
    does.
    """
    original = resource.setrlimit

    def guarded(which: int, limits: tuple[int, int]) -> None:
        if which != resource.RLIMIT_NOFILE:
            original(which, limits)

    resource.setrlimit = guarded
    try:
        yield
    finally:
        resource.setrlimit = original


def import_mlx_lm_loader() -> Any:
    """Imports and returns `mlx_lm.utils`, the limit of open files untouched."""
    with _file_limit_kept():
        from mlx_lm import utils
    return utils


def load_model(checkpoint: Checkpoint, dtype: mx.Dtype | None) -> Module:
    """`build_model`, and then the weights evaluated, on the calling thread."""
    model = build_model(checkpoint, dtype)
    mx.eval(model.parameters())  # type: ignore[no-untyped-call]
    return model


def build_model(checkpoint: Checkpoint, dtype: mx.Dtype | None) -> Module:
    """Builds the model over weights that no memory holds yet; runs no code of the checkpoint.

    Args:
        dtype: type that floating-point parameters are cast to, the scales of quantised ones
            included; None keeps them.

    Raises:
        ModelError: mlx-lm can't load it.
    """
    loader = import_mlx_lm_loader()
    try:
        model, _ = loader.load_model(Path(checkpoint.folder), lazy=True, trust_remote_code=False)
    except (ValueError, KeyError, TypeError, FileNotFoundError, RuntimeError) as error:
        raise ModelError(f"mlx-lm can't load {checkpoint.folder}: {error}") from error
    loaded: Module = model
    if dtype is not None:
        loaded.set_dtype(dtype)
    return loaded
