"""A block allocator for leased blocks: hands them out, counts who uses them, knows which are free.

Source: the free list with reference counts follows nano-vllm, nanovllm/engine/block_manager.py
(MIT).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping


class BlocksExhausted(Exception):
    """Fewer leased blocks are free than were asked for: preempt a sequence, or lease more."""


class BlockAllocator:
    """Divides the blocks that a session has leased among its sequences.

    Blocks come in by `add` (from `Session.allocate_blocks`) and leave by `take_free` (for
    `Session.free_blocks`). In between a block has as many users as tables that name it: one from
    `allocate`, one more from each `share`. `release` takes one away; without users a block is free.

    The server runs steps in order, so a block released in step N may be used anew in step N:
    nothing has to wait for answers. Not thread-safe.
    """

    def __init__(self) -> None:
        self._free: dict[int, deque[int]] = {}
        self._users: dict[int, dict[int, int]] = {}

    def add(self, blocks: Mapping[int, Iterable[int]]) -> None:
        """Takes newly leased blocks in, by group; they are free.

        Raises:
            ValueError: a block is here already, or is block 0, which is never leased.
        """
        for group, block_ids in blocks.items():
            users = self._users.setdefault(group, {})
            free = self._free.setdefault(group, deque())
            for block_id in block_ids:
                if block_id == 0 or block_id in users:
                    raise ValueError(f"block {block_id} of group {group} can't be added")
                users[block_id] = 0
                free.append(block_id)

    def free_count(self, group: int = 0) -> int:
        """Returns how many blocks of a group are free."""
        return len(self._free.get(group, ()))

    def used_count(self, group: int = 0) -> int:
        """Returns how many blocks of a group have users."""
        return len(self._users.get(group, ())) - self.free_count(group)

    def can_allocate(self, counts: Mapping[int, int]) -> bool:
        """Returns whether `counts` blocks by group are free."""
        return all(self.free_count(group) >= count for group, count in counts.items())

    def allocate(self, counts: Mapping[int, int]) -> dict[int, list[int]]:
        """Hands out `counts` blocks by group, all or none; each has one user.

        Raises:
            BlocksExhausted: too few are free; nothing changed.
        """
        if not self.can_allocate(counts):
            raise BlocksExhausted(f"{dict(counts)} wanted, {self._free_counts()} free")
        taken: dict[int, list[int]] = {}
        for group, count in counts.items():
            taken[group] = [self._free[group].popleft() for _ in range(count)]
            for block_id in taken[group]:
                self._users[group][block_id] = 1
        return taken

    def claim(self, blocks: Mapping[int, Iterable[int]]) -> None:
        """Gives each of these very blocks one more user; holes (0) are skipped.

        For tables that exist already, those of a session taken over say.

        Raises:
            ValueError: a block is not here.
        """
        for group, block_ids in blocks.items():
            for block_id in filter(None, block_ids):
                if block_id not in self._users.get(group, {}):
                    raise ValueError(f"block {block_id} of group {group} is not leased")
                if self._users[group][block_id] == 0:
                    self._free[group].remove(block_id)
                self._users[group][block_id] += 1

    def share(self, blocks: Mapping[int, Iterable[int]]) -> None:
        """Gives each block one more user: another table will name it, to read a common prefix.

        Raises:
            ValueError: a block has no user; nothing changed.
        """
        listed = [(group, block_id) for group, ids in blocks.items() for block_id in ids]
        self._check_used(listed)
        for group, block_id in listed:
            self._users[group][block_id] += 1

    def release(self, blocks: Mapping[int, Iterable[int]]) -> None:
        """Takes one user from each block; holes (0) in the lists of a table are skipped.

        Raises:
            ValueError: a block has no user; nothing changed.
        """
        listed = [
            (group, block_id) for group, ids in blocks.items() for block_id in ids if block_id
        ]
        self._check_used(listed)
        for group, block_id in listed:
            self._users[group][block_id] -= 1
            if self._users[group][block_id] == 0:
                self._free[group].append(block_id)

    def is_shared(self, group: int, block_id: int) -> bool:
        """Returns whether more than one table names the block, so that a row may not write it."""
        return self._users[group][block_id] > 1

    def take_free(self, group: int, count: int) -> list[int]:
        """Takes up to `count` free blocks out, to give them back to the server."""
        free = self._free.get(group, deque())
        taken = [free.pop() for _ in range(min(count, len(free)))]
        for block_id in taken:
            del self._users[group][block_id]
        return taken

    def _free_counts(self) -> dict[int, int]:
        return {group: len(free) for group, free in self._free.items()}

    def _check_used(self, listed: list[tuple[int, int]]) -> None:
        wanted: dict[tuple[int, int], int] = {}
        for group, block_id in listed:
            wanted[group, block_id] = wanted.get((group, block_id), 0) + 1
            if self._users.get(group, {}).get(block_id, 0) < 1:
                raise ValueError(f"block {block_id} of group {group} has no user")
        for (group, block_id), count in wanted.items():
            if count > self._users[group][block_id]:
                raise ValueError(f"block {block_id} of group {group} is listed too often")
