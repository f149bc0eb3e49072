"""The sequences that every arm of a benchmark starts from, and the sizes that all of them share."""

from __future__ import annotations

import numpy as np

BLOCK_SIZE = 16
"""Positions in a block."""
ROWS_MAX = 8192
"""Rows of the largest step."""


def prompts_for(sequences: int, context: int, vocabulary_size: int) -> list[list[int]]:
    """`sequences` prompts of `context` random tokens each; the same for the same arguments."""
    rng = np.random.default_rng(20)
    ids: list[list[int]] = rng.integers(1, vocabulary_size, (sequences, context)).tolist()
    return ids


def blocks_for(positions: int) -> int:
    """Blocks that hold `positions` of one sequence."""
    return -(-positions // BLOCK_SIZE)
