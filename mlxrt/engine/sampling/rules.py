"""The rules of a step's rows in the form that the device works with."""

from __future__ import annotations

import math
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from mlxrt.core.sampling import Sampling

# Columns of `DrawRules.table`.
_TEMPERATURE, _TOP_K, _TOP_P, _MIN_P_DEPTH, UNIFORM = range(5)
RULE_COUNT = 5

# Smallest normal float32: a smaller temperature is flushed to zero on some devices.
_TEMPERATURE_MIN = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True, slots=True)
class Biases:
    """Rule 1, one entry per biased logit: `rows`, `tokens` [N] int32, `amounts` [N] float32."""

    rows: mx.array
    tokens: mx.array
    amounts: mx.array


@dataclass(frozen=True, slots=True)
class Penalties:
    """Rule 2 for the P rows that it changes. `owner` in the pairs below counts within those P.

    Attributes:
        rows: [P] int32, of the batch.
        repetition, presence, frequency: [P, 1] float32.
        prompt_owners, prompt_tokens: [N] int32 pairs; None without any.
        generated_owners, generated_tokens: [N] int32 pairs; None without any.
        pending_owners, pending_indices: [N] int32 pairs, the latter into the pending tokens; None
            without any.
    """

    rows: mx.array
    repetition: mx.array
    presence: mx.array
    frequency: mx.array
    prompt_owners: mx.array | None
    prompt_tokens: mx.array | None
    generated_owners: mx.array | None
    generated_tokens: mx.array | None
    pending_owners: mx.array | None
    pending_indices: mx.array | None


@dataclass(frozen=True, slots=True)
class Masks:
    """Tokens allowed, for M rows.

    Attributes:
        rows: [M] int32, of the batch.
        words: [M, ceil(V / 32)] uint32, one bit for each token, least significant first.
    """

    rows: mx.array
    words: mx.array


@dataclass(frozen=True, slots=True)
class Truncation:
    """Rules 5 and 6 for G of the drawn rows.

    Attributes:
        rows: [G] int32, within the drawn rows; None where they are all of them.
        depth: how many of the largest logits decide; the vocabulary size where any of them may.
        top_k_index: [G, 1] int32, top-k - 1; `depth - 1` where top-k is off; None where it is off
            for all.
        top_p: [G, 1] float32, 1 where top-p is off; None where it is off for all.
    """

    rows: mx.array | None
    depth: int
    top_k_index: mx.array | None
    top_p: mx.array | None


@dataclass(frozen=True, slots=True)
class DrawRules:
    """Rules 3 to 7 for the R rows with a temperature, on the host.

    Attributes:
        rows: [R] int32, of the batch.
        table: [R, 5] float32, as `kernels.sample` takes it: `draw_numbers`, then `uniform`.
    """

    rows: npt.NDArray[np.int32]
    table: npt.NDArray[np.float32]

    @property
    def temperature(self) -> npt.NDArray[np.float32]:
        """[R] float32, at least 2^-126."""
        return self.table[:, _TEMPERATURE]

    @property
    def top_k(self) -> npt.NDArray[np.int32]:
        """[R] int32, below the vocabulary size; 0 is off."""
        return self.table[:, _TOP_K].astype(np.int32)

    @property
    def top_p(self) -> npt.NDArray[np.float32]:
        """[R] float32; 1 is off."""
        return self.table[:, _TOP_P]

    @property
    def log_min_p(self) -> npt.NDArray[np.float32]:
        """[R] float32; minus infinity is off."""
        return -self.table[:, _MIN_P_DEPTH]

    @property
    def uniform(self) -> npt.NDArray[np.float32]:
        """[R] float32, the random number."""
        return self.table[:, UNIFORM]


def draw_numbers(sampling: Sampling, vocabulary_size: int) -> tuple[float, float, float, float]:
    """Rules 3 to 6 of a row with a temperature, as they stand in `DrawRules.table`: temperature,
    top-k, top-p and how far below the largest logit min-p goes.
    """
    return (
        max(sampling.temperature, _TEMPERATURE_MIN),
        # Beyond the vocabulary top-k is off; below it is exact in float32.
        sampling.top_k if sampling.top_k < vocabulary_size else 0,
        sampling.top_p,
        -math.log(sampling.min_p) if sampling.min_p > 0.0 else math.inf,
    )


@dataclass(frozen=True, slots=True)
class Draws:
    """`DrawRules` as the plain sampler takes them.

    Attributes:
        rows: [R] int32, of the batch; None where they are all of it, in order.
        temperature: [R, 1] float32; None where all are 1.
        uniform: [R, 1] float32.
        log_min_p: [R, 1] float32, minus infinity where min-p is off; None where it is off for all.
        truncations: disjoint groups of rows.
    """

    rows: mx.array | None
    temperature: mx.array | None
    uniform: mx.array
    log_min_p: mx.array | None
    truncations: tuple[Truncation, ...]


@dataclass(frozen=True, slots=True)
class LogprobGroup:
    """Rows whose logprobs come from the same logits.

    Attributes:
        rows: of the batch, on the host.
        top_counts: of each row, how many of the most probable tokens it asked for.
        row_indices: [L] int32, `rows` on the device.
        source_indices: [L] int32, where those rows stand in the source; None where they are the
            source, in order.
        depth: the largest of `top_counts`, at most the vocabulary size.
    """

    rows: list[int]
    top_counts: list[int]
    row_indices: mx.array
    source_indices: mx.array | None
    depth: int

    @classmethod
    def of_all(cls, count: int, depth: int) -> LogprobGroup:
        """All `count` rows of a source, with `depth` alternatives each."""
        rows = list(range(count))
        return cls(rows, [depth] * count, mx.arange(count, dtype=mx.int32), None, depth)
