"""The pool: which block ids are free."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence


class Pool:
    """Free block ids by group, handed out in the order in which they came back. Id 0 is never among
    them.
    """

    __slots__ = ("_free", "capacities")

    def __init__(self, block_counts: Sequence[int]) -> None:
        """Every block free but 0; `block_counts` by group, block 0 included."""
        self._free = [deque(range(1, count)) for count in block_counts]
        self.capacities = tuple(max(0, count - 1) for count in block_counts)

    def free_counts(self) -> tuple[int, ...]:
        """Free blocks by group."""
        return tuple(map(len, self._free))

    def free_count(self, group: int) -> int:
        """Free blocks of one group."""
        return len(self._free[group])

    def take(self, group: int, count: int) -> list[int]:
        """Takes the `count` blocks that have been free longest; the caller has checked that there
        are so many.
        """
        free = self._free[group]
        return [free.popleft() for _ in range(count)]

    def give_back(self, blocks: Iterable[tuple[int, int]]) -> None:
        """Makes blocks free, each `(group, block id)`."""
        for group, block_id in blocks:
            self._free[group].append(block_id)

    def free_ids(self, group: int) -> tuple[int, ...]:
        """The free ids, the next to be taken first."""
        return tuple(self._free[group])
