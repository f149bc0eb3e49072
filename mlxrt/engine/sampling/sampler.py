"""Who picks the tokens after rules 1 and 2: the native op, or plain MLX operations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mlxrt.engine.sampling.batch import SamplingBatch
from mlxrt.engine.sampling.device_draws import device_draws
from mlxrt.engine.sampling.draw import draw


@dataclass(frozen=True, slots=True)
class Picked:
    """The tokens of a step.

    Attributes:
        tokens: [S] int32.
        finite: [S] bool, whether all logits of the row that was sampled from are finite; None where
            that was not looked at.
        kept: [R, V] float32, of the drawn rows: logits after rules 1 to 6, up to one constant per
            row, minus infinity where excluded; None without drawn rows, or where nobody asked.
    """

    tokens: mx.array
    finite: mx.array | None
    kept: mx.array | None


class Sampler(Protocol):
    """Rules 3 to 7 for the rows of a batch.

    Attributes:
        name: "native" or "plain".
        steps: sampled so far.
    """

    name: str
    steps: int

    def pick(self, logits: mx.array, batch: SamplingBatch) -> Picked:
        """Builds the graph that picks one token per row of `logits`.

        Args:
            logits: [S, V] after rules 1 and 2 and masks, any float dtype; rows from `batch.count`
                on are picked greedily.
        """
        ...

    def table(self, batch: SamplingBatch) -> NDArray[np.float32] | None:
        """The rules of the batch's rows as numbers, [count, 5], for `pick_by`; None where the
        sampler takes none, or a row has more than rules 3 to 7.
        """
        ...

    def pick_by(self, logits: mx.array, table: mx.array) -> Picked:
        """As `pick`, by a `table` [S, 5], with which a compiled step needs no rules of its own.

        Raises:
            RuntimeError: the sampler takes none.
        """
        ...


class PlainSampler:
    """MLX operations alone: runs everywhere, sorts where top-p asks for it."""

    name = "plain"

    def __init__(self) -> None:
        self.steps = 0

    def pick(self, logits: mx.array, batch: SamplingBatch) -> Picked:
        """As `Sampler.pick`."""
        self.steps += 1
        if batch.draws is None:
            return Picked(_greedy(logits), None, None)
        draws = device_draws(batch.draws, batch.count, logits.shape[-1])
        drawn = draw(logits, draws)
        if draws.rows is None and logits.shape[0] == batch.count:
            return Picked(drawn.tokens, None, drawn.kept)
        rows = mx.arange(batch.count) if draws.rows is None else draws.rows
        tokens = mx.put_along_axis(_greedy(logits), rows, drawn.tokens, axis=0)
        return Picked(tokens, None, drawn.kept)

    def table(self, batch: SamplingBatch) -> None:
        """None: these operations depend on the rules."""

    def pick_by(self, logits: mx.array, table: mx.array) -> Picked:
        """Raises RuntimeError."""
        raise RuntimeError("the plain sampler takes no table of rules")


def _greedy(logits: mx.array) -> mx.array:
    return mx.argmax(logits, axis=-1).astype(mx.int32)
