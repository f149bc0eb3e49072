"""Selects the rows that sample before the head, which then computes no row in vain."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
from mlx.nn.layers.base import Module

from mlxrt.models.errors import ModelError


class RowSelector:
    """Stands in the place of a model's inner model and returns only the selected rows of its
    output.

    Attributes:
        rows: [K] int32 indices into the T rows; None for all of them.
        kept: the output of the last call; its owner drops it.
        given: [K, 1, hidden] what to return without calling the inner model, so that the model
            computes its head alone; None to call it.
    """

    def __init__(self, inner: Module) -> None:
        self._inner = inner
        self.rows: mx.array | None = None
        self.kept: mx.array | None = None
        self.given: mx.array | None = None

    def __call__(self, *arguments: Any, **named: Any) -> mx.array:
        """The inner model's output, `[T, 1, hidden]`, of the selected rows: `[K, 1, hidden]`."""
        if self.given is not None:
            return self.given
        hidden: mx.array = self._inner(*arguments, **named)
        self.kept = hidden if self.rows is None else hidden[self.rows]
        return self.kept

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def install_row_selector(model: Module, name: str = "model") -> RowSelector:
    """Puts a selector in the place of the inner model, the attribute `name`, with dots on the way;
    `Model.__call__` does its own head on what it returns.

    Raises:
        ModelError: the model has no inner model of that name.
    """
    *path, last = name.split(".")
    holder: Any = model
    for part in path:
        holder = getattr(holder, part, None)
    inner = getattr(holder, last, None)
    if not isinstance(inner, Module):
        raise ModelError(
            f"{type(model).__module__}: the model has no inner model to select rows of"
        )
    selector = RowSelector(inner)
    setattr(holder, last, selector)
    return selector
