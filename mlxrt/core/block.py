"""One leased block."""

from __future__ import annotations


class Block:
    """A block from its lease to its return; a new lease of the same id is a new object.

    Attributes:
        refs: table entries of the session that name it.
        filled: leading positions that are computed, once every accepted step has run.
        is_tail: set while some sequence may write it on the plain path (Sequence.tails); may stay
            set a while longer.
    """

    __slots__ = ("block_id", "filled", "group", "is_tail", "refs")

    def __init__(self, group: int, block_id: int) -> None:
        """A block that no table names and in which nothing is computed."""
        self.group = group
        self.block_id = block_id
        self.refs = 0
        self.filled = 0
        self.is_tail = False


Table = list[Block | None]
"""Blocks of one sequence in one group; None is a hole."""


def block_ids(table: Table) -> list[int]:
    """The table as ids, 0 for a hole."""
    return [0 if block is None else block.block_id for block in table]
