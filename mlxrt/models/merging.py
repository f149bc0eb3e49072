"""Projections of one input, merged into one product at load."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
from mlx.nn.layers.base import Module
from mlx.nn.layers.linear import Linear
from mlx.nn.layers.quantized import QuantizedLinear


class NotFusedError(Exception):
    """The model can't be fused; the message says what stands against it."""


class DenseProjection(Module):
    """One or more `Linear`s of the same input: their outputs side by side, [.., N].

    The weights are held as the product takes them, [hidden, N], so that no step transposes.
    """

    def __init__(self, linears: Sequence[Linear]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        weights = [linear.weight for linear in linears]
        self.weight = (weights[0] if len(weights) == 1 else mx.concatenate(weights)).T
        self.bias = _bias_of(linears)

    def __call__(self, x: mx.array) -> mx.array:
        """[.., hidden] to [.., N]."""
        return x @ self.weight if self.bias is None else mx.addmm(self.bias, x, self.weight)


class QuantizedProjection(Module):
    """The same of `QuantizedLinear`s, which share group size, bits and mode."""

    def __init__(self, linears: Sequence[QuantizedLinear]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        first = linears[0]
        self.group_size, self.bits, self.mode = first.group_size, first.bits, first.mode
        self.weight = _joined([linear.weight for linear in linears])
        self.scales = _joined([linear.scales for linear in linears])
        # The modes of floating point have none.
        has_biases = first.get("biases") is not None
        self.biases = _joined([linear["biases"] for linear in linears]) if has_biases else None
        self.bias = _bias_of(linears)

    def __call__(self, x: mx.array) -> mx.array:
        """[.., hidden] to [.., N]."""
        product = mx.quantized_matmul(
            x,
            self.weight,
            scales=self.scales,
            biases=self.biases,
            transpose=True,
            group_size=self.group_size,
            bits=self.bits,
            mode=self.mode,
        )
        return product if self.bias is None else product + self.bias


def merged(name: str, linears: Sequence[Module]) -> DenseProjection | QuantizedProjection:
    """One projection for `linears`, whose inputs are the same array.

    Raises:
        NotFusedError: they are of different kinds; `name` says which they are.
    """
    kinds = {type(linear) for linear in linears}
    if len({"bias" in linear for linear in linears}) > 1:
        raise NotFusedError(f"{name}: some have a bias and some have none")
    if kinds == {Linear}:
        return DenseProjection([linear for linear in linears if isinstance(linear, Linear)])
    if kinds == {QuantizedLinear}:
        quantised = [linear for linear in linears if isinstance(linear, QuantizedLinear)]
        forms = {(each.group_size, each.bits, each.mode) for each in quantised}
        if len(forms) == 1:
            return QuantizedProjection(quantised)
    described = ", ".join(sorted(_described(linear) for linear in linears))
    raise NotFusedError(f"{name}: projections of different kinds ({described})")


def _joined(arrays: Sequence[mx.array]) -> mx.array:
    return arrays[0] if len(arrays) == 1 else mx.concatenate(list(arrays))


def _bias_of(linears: Sequence[Module]) -> mx.array | None:
    if "bias" not in linears[0]:
        return None
    return _joined([linear["bias"] for linear in linears])


def _described(linear: Module) -> str:
    if isinstance(linear, QuantizedLinear):
        return f"{linear.bits} bits by {linear.group_size}"
    return type(linear).__name__
