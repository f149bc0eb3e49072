"""The token ids that every arm of a benchmark starts from."""

from __future__ import annotations

import numpy as np


def prompts_for(sequences: int, context: int, vocabulary_size: int) -> list[list[int]]:
    """`sequences` prompts of `context` random tokens each; the same for the same arguments."""
    rng = np.random.default_rng(20)
    ids: list[list[int]] = rng.integers(1, vocabulary_size, (sequences, context)).tolist()
    return ids
