"""The facts and limits that validation compares with, picked out once."""

from __future__ import annotations

from mlxrt.core.model import Limits, ModelFacts


class Bounds:
    """What a step may name at most; fixed.

    Attributes:
        windows: by group; 0 where a row sees every position before it.
        max_length: positions, and known tokens, of one sequence.
        max_table_length: entries of one table.
    """

    __slots__ = (
        "block_counts",
        "block_size",
        "group_count",
        "limits",
        "max_length",
        "max_table_length",
        "vocabulary_size",
        "windows",
    )

    def __init__(self, facts: ModelFacts, limits: Limits) -> None:
        """Picks them out of `facts` and `limits`."""
        self.limits = limits
        self.block_size = facts.block_size
        self.group_count = len(facts.groups)
        self.block_counts = tuple(group.block_count for group in facts.groups)
        self.windows = tuple(group.window for group in facts.groups)
        self.vocabulary_size = facts.vocabulary_size
        self.max_length = min(facts.max_model_length, limits.max_model_length)
        self.max_table_length = -(-self.max_length // self.block_size)

    def first_read(self, group: int, start: int) -> int:
        """Lowest position that a row at `start` reads in `group`."""
        window = self.windows[group]
        return max(0, start - window + 1) if window else 0
