"""The fake model: what its next token is, and the memory that it reads to say so.

A slot of the pool holds the id of the token at that position, as a float64 (exact below 2^53), and
NaN until it is first written. One hash over a sequence's visible context, read slot by slot
through its block tables, gives the next token:

    h_g(tokens)  = sum of tokens[p] * w(p) over the positions p < n that group g sees
                   (exact; NaN where a slot is)
    next(tokens) = z modulo the vocabulary size, where z = 0 at first and then, for each group g,
                   z = mix(z ^ (h_g + n * GOLDEN))
    logits[v]    = -((v - next(tokens)) mod vocabulary_size) / 8, float32

where n is the number of tokens, w(p) = 1 + (mix(p) >> 44) and mix is that of the contract's random
generator. So the greedy token is `next(tokens)`, the one after it is the second most probable, and
so on round the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from mlxrt.config import FAKE_MODEL_LENGTH_MAX

GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1
_WEIGHT_SHIFT = 44
LOGIT_STEP = 0.125
VOCABULARY_SIZE_MAX = 1 << 18

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]


def mix(value: int) -> int:
    """The contract's 64-bit mixer (mlxrt.v1.SamplingParams)."""
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def _mix_array(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """`mix` of each element, in place."""
    values ^= values >> np.uint64(30)
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values


@lru_cache(maxsize=4)
def _weights(length: int) -> FloatArray:
    """[length] float64: w(p)."""
    positions = np.arange(length, dtype=np.uint64)
    return (np.uint64(1) + (_mix_array(positions) >> np.uint64(_WEIGHT_SHIFT))).astype(np.float64)


def _hide_unseen(
    context: FloatArray,
    positions: npt.NDArray[np.int32],
    lengths: IntArray,
    shortest: int,
    window: int,
) -> None:
    """Sets to 0 what no row may read, in place.

    Unseen slots may hold NaN, and 0 * NaN is NaN: they are replaced, not weighted away.

    Args:
        context: [R, P], the slots at `positions` [P], ascending.
        lengths: [R], tokens of each row's context.
        shortest: the least of them.
        window: of the group, 0 for none.
    """
    ends = lengths.astype(np.int32)[:, None]
    if window:
        np.copyto(context, 0.0, where=(positions >= ends) | (positions < ends - window))
        return
    tail = max(0, shortest - int(positions[0]))
    np.copyto(context[:, tail:], 0.0, where=positions[tail:] >= ends)


class FakeModel:
    """Pools of NaN and the hash over them. Symbols: G groups, N blocks, B positions in a block, R
    rows of a call.

    Args:
        vocabulary_size: 2 to 2^18.
        max_model_length: positions of a sequence, 1 to 2^15.
        block_size: B, 1 to 256.
        num_blocks: N, block 0 included.
        windows: one group per entry: positions that a row sees in it, itself included; 0 for all.
    """

    def __init__(
        self,
        vocabulary_size: int,
        max_model_length: int,
        block_size: int,
        num_blocks: int,
        windows: Sequence[int],
    ) -> None:
        if not 2 <= vocabulary_size <= VOCABULARY_SIZE_MAX:
            raise ValueError(
                f"vocabulary_size {vocabulary_size} is not in 2..{VOCABULARY_SIZE_MAX}"
            )
        if not 1 <= max_model_length <= FAKE_MODEL_LENGTH_MAX:
            raise ValueError(
                f"max_model_length {max_model_length} is not in 1..{FAKE_MODEL_LENGTH_MAX}"
            )
        self.vocabulary_size = vocabulary_size
        self.max_model_length = max_model_length
        self.block_size = block_size
        self.windows = tuple(windows)
        self.pools = [np.full((num_blocks, block_size), np.nan) for _ in self.windows]
        whole_blocks = -(-max_model_length // block_size)
        self._weights = _weights(whole_blocks * block_size)
        self._positions = np.arange(whole_blocks * block_size, dtype=np.int32)

    def expected_token(self, tokens: Sequence[int]) -> int:
        """The greedy token after `tokens` (at least one), in plain Python: what a right table must
        give."""
        n, z = len(tokens), 0
        weights = self._weights
        for window in self.windows:
            first = max(0, n - window) if window else 0
            total = sum(int(tokens[p]) * int(weights[p]) for p in range(first, n))
            z = mix(z ^ ((total + n * GOLDEN) & _MASK))
        return z % self.vocabulary_size

    def write(self, group: int, blocks: IntArray, offsets: IntArray, tokens: IntArray) -> None:
        """Writes tokens to slots. All [R]; every (block, offset) within the pool."""
        self.pools[group][blocks, offsets] = tokens

    def copy_blocks(self, copies: Sequence[tuple[int, int, int]]) -> None:
        """Copies (group, source, destination) blocks, all sources read before any destination is
        written."""
        for group, pool in enumerate(self.pools):
            pairs = [(s, d) for g, s, d in copies if g == group]
            if pairs:
                sources, destinations = np.array(pairs).T
                pool[destinations] = pool[sources]

    def next_tokens(
        self, tables: Sequence[npt.NDArray[Any]], lengths: IntArray
    ) -> tuple[IntArray, npt.NDArray[np.bool_]]:
        """The greedy tokens after R contexts, every visible slot of which is read through the
        tables.

        Args:
            tables: by group, [R, at least ceil(max(lengths) / B)] integer block ids; rows may have
                zeros past their end.
            lengths: [R], tokens of each context, at least 1.

        Returns:
            tokens [R], and [R] whether a slot that was read held NaN; the token there has no
            meaning.
        """
        longest, shortest = int(lengths.max()), int(lengths.min())
        entries = -(-longest // self.block_size)
        z = np.zeros(len(lengths), np.uint64)
        poisoned = np.zeros(len(lengths), np.bool_)
        lengths_mixed = lengths.astype(np.uint64) * np.uint64(GOLDEN)
        for pool, window, table in zip(self.pools, self.windows, tables, strict=True):
            # Entries that lie before every row's window need not be fetched.
            first = max(0, shortest - window) // self.block_size if window else 0
            context = pool.take(table[:, first:entries], axis=0).reshape(len(lengths), -1)
            positions = self._positions[first * self.block_size : entries * self.block_size]
            _hide_unseen(context, positions, lengths, shortest, window)
            totals = np.einsum("ij,j->i", context, self._weights[positions[0] : positions[-1] + 1])
            bad = np.isnan(totals)
            if bad.any():
                poisoned |= bad
                totals[bad] = 0.0
            z ^= totals.astype(np.uint64) + lengths_mixed
            _mix_array(z)
        return (z % np.uint64(self.vocabulary_size)).astype(np.int64), poisoned

    def logits(self, greedy_token: int) -> npt.NDArray[np.float32]:
        """[vocabulary_size] float32: the row of logits whose greedy token is `greedy_token`."""
        ranks = (np.arange(self.vocabulary_size) - greedy_token) % self.vocabulary_size
        return (ranks * -LOGIT_STEP).astype(np.float32)
