"""Drafts from the text itself: what followed the last time that the sequence ended like this."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def propose(
    tokens: Sequence[int], shortest: int, longest: int, count: int, length_max: int
) -> list[int]:
    """Returns up to `count` tokens that followed the longest n-gram which also ends `tokens`.

    Of several occurrences the earliest counts, as in vLLM's own proposer.

    Args:
        tokens: of the sequence so far.
        shortest, longest: lengths of n-grams to look for.
        count: most tokens to propose.
        length_max: positions of the longest sequence; drafts beyond it are not proposed.
    """
    count = min(count, length_max - len(tokens))
    if count <= 0:
        return []
    known = np.asarray(tokens, dtype=np.int64)
    for length in range(min(longest, len(tokens) - 1), shortest - 1, -1):
        end = _earliest_end(known, length)
        if end is not None:
            return [int(token) for token in known[end : end + count]]
    return []


def _earliest_end(known: npt.NDArray[np.int64], length: int) -> int | None:
    """End of the first occurrence of the last `length` tokens before the last; None if none."""
    windows = np.lib.stride_tricks.sliding_window_view(known[:-1], length)
    found = np.flatnonzero((windows == known[-length:]).all(axis=1))
    return int(found[0]) + length if found.size else None
