"""The result of sampling a step: lazy arrays for the device, then plain values for the host."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mlxrt.core.step import SampledRow
from mlxrt.engine.sampling.rules import LogprobGroup
from mlxrt.errors import MlxrtError, Reason


@dataclass(frozen=True, slots=True)
class LogprobArrays:
    """Logprobs of the L rows of one group.

    Attributes:
        group: which rows.
        logprobs: [L] float32, of the sampled tokens.
        ranks: [L] int32, 1 + number of tokens more probable than the sampled one.
        top_ids: [L, K] int32, most probable first, ties by lower id; None with K = 0.
        top_logprobs: [L, K] float32; None with K = 0.
    """

    group: LogprobGroup
    logprobs: mx.array
    ranks: mx.array
    top_ids: mx.array | None
    top_logprobs: mx.array | None

    def arrays(self) -> list[mx.array]:
        """Returns what must be evaluated."""
        arrays = [self.logprobs, self.ranks]
        if self.top_ids is not None and self.top_logprobs is not None:
            arrays += [self.top_ids, self.top_logprobs]
        return arrays

    def read_into(self, tokens: list[int], details: dict[int, SampledRow]) -> None:
        """Adds one SampledRow per row of the group to `details`. Waits for the device."""
        logprobs: list[float] = np.array(self.logprobs).tolist()
        ranks: list[int] = np.array(self.ranks).tolist()
        tops = self._tops()
        for k, row in enumerate(self.group.rows):
            detail = SampledRow(token=tokens[row], logprob=logprobs[k])
            if self.group.top_counts[k]:
                detail.top = tops[k][: self.group.top_counts[k]]
                detail.rank = ranks[k]
            details[row] = detail

    def _tops(self) -> list[list[tuple[int, float]]]:
        if self.top_ids is None or self.top_logprobs is None:
            return []
        ids: list[list[int]] = np.array(self.top_ids).tolist()
        values: list[list[float]] = np.array(self.top_logprobs).tolist()
        return [list(zip(*pair, strict=True)) for pair in zip(ids, values, strict=True)]


@dataclass(frozen=True, slots=True)
class Sampled:
    """The tokens of a step, and what else its rows asked for. Lazy until `arrays()` are evaluated.

    Attributes:
        count: rows of the batch; rows of the arrays from there on are padding.
        tokens: [S] int32, each below the vocabulary size, in a row of non-finite logits too.
        finite: [S] bool, whether all raw logits of the row are finite.
        logprobs: one per group of rows that asked.
        barred: rows whose mask allows no token.
    """

    count: int
    tokens: mx.array
    finite: mx.array
    logprobs: tuple[LogprobArrays, ...] = ()
    barred: tuple[int, ...] = ()

    def arrays(self) -> list[mx.array]:
        """Returns every array that `read` needs, for one `async_eval`."""
        arrays = [self.tokens, self.finite]
        for group in self.logprobs:
            arrays += group.arrays()
        return arrays

    def read(self, sampled: NDArray[np.int32]) -> tuple[list[int], dict[int, SampledRow]]:
        """Returns the tokens, and by row what is more than a token: logprobs, or a failure.

        The failure is MASK_EMPTY or NON_FINITE_LOGITS; the token of such a row has no meaning.
        Waits for the device if the arrays are not evaluated yet.

        Args:
            sampled: [S], the content of `tokens`. That array itself is left to whoever builds the
                next step on it.
        """
        tokens: list[int] = sampled[: self.count].tolist()
        details: dict[int, SampledRow] = {}
        for group in self.logprobs:
            group.read_into(tokens, details)
        for row in self.barred:
            details[row] = SampledRow(failure=mask_empty())
        finite = np.array(self.finite)[: self.count]
        if not finite.all():
            for row in np.flatnonzero(~finite).tolist():
                details[row] = SampledRow(failure=non_finite())
        return tokens, details


def mask_empty() -> MlxrtError:
    """The failure of a row whose mask allows no token."""
    return MlxrtError(Reason.MASK_EMPTY, "the mask of this sequence allows no token")


def non_finite() -> MlxrtError:
    """The failure of a row of non-finite logits."""
    return MlxrtError(
        Reason.NON_FINITE_LOGITS, "the model gave NaN or infinite logits for this sequence"
    )
