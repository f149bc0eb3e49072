"""The native sampler: one operation for greedy and drawn rows alike, by `mlxrt.kernels`."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mlxrt import kernels
from mlxrt.attention.transfer import HAS_TRANSFERS, to_device
from mlxrt.engine.sampling.batch import SamplingBatch
from mlxrt.engine.sampling.draw import scale
from mlxrt.engine.sampling.rules import DrawRules
from mlxrt.engine.sampling.sampler import Picked

_OFF = np.array([0.0, 0.0, 1.0, np.inf, 0.0], np.float32)
"""The rules of a greedy row, as `kernels.sample` takes them."""


class NativeSampler:
    """Searches thresholds instead of sorting. Its sums are exact: what a row draws depends on its
    logits and rules alone, to the bit.
    """

    name = "native"

    def __init__(self) -> None:
        self.steps = 0
        self._greedy = mx.array(_OFF[None])

    def pick(self, logits: mx.array, batch: SamplingBatch) -> Picked:
        """As `Sampler.pick`."""
        self.steps += 1
        if batch.draws is None:
            tokens, finite, _ = kernels.sample(logits, self._greedy)
            return Picked(tokens, finite, None)
        rules = _on_device(_table(batch.draws, batch.count))
        tokens, finite, least = kernels.sample(logits, rules)
        if batch.drawn_logprobs is None:
            return Picked(tokens, finite, None)
        return Picked(tokens, finite, _kept(logits, least, batch.draws))

    def table(self, batch: SamplingBatch) -> NDArray[np.float32] | None:
        """As `Sampler.table`: `rules` of `kernels.sample`."""
        return _table(batch.draws, batch.count) if batch.draws and batch.is_drawn_alone else None

    def pick_by(self, logits: mx.array, table: mx.array) -> Picked:
        """As `Sampler.pick_by`."""
        self.steps += 1
        tokens, finite, _ = kernels.sample(logits, table)
        return Picked(tokens, finite, None)


def _table(draws: DrawRules, count: int) -> NDArray[np.float32]:
    """[count, 5] float32."""
    if len(draws.rows) == count:
        return draws.table
    table = np.empty((count, len(_OFF)), np.float32)
    table[:] = _OFF
    table[draws.rows] = draws.table
    return table


def _on_device(table: np.ndarray) -> mx.array:
    if HAS_TRANSFERS:
        (bits,) = to_device([table.view(np.int32)])
        return bits.view(mx.float32)
    return mx.array(table)


def _kept(logits: mx.array, least: mx.array, draws: DrawRules) -> mx.array:
    rows = mx.array(draws.rows)
    chosen = logits[rows]
    scaled = scale(chosen, mx.array(draws.temperature[:, None]))
    return mx.where(chosen.astype(mx.float32) >= least[rows][:, None], scaled, -mx.inf)
