"""Stored replies: a repeated step is answered, never run again."""

from __future__ import annotations

from mlxrt.core.step import StepReply


class ReplyStore:
    """The last replies of a session, by step number, each with the digest of the step."""

    __slots__ = ("_capacity", "_replies")

    def __init__(self, capacity: int) -> None:
        """Empty."""
        self._capacity = capacity
        self._replies: dict[int, tuple[bytes, StepReply]] = {}

    def find(self, step_number: int) -> tuple[bytes, StepReply] | None:
        """The digest and the reply, or None where it is gone."""
        return self._replies.get(step_number)

    def store(self, digest: bytes, reply: StepReply) -> None:
        """Keeps a reply and drops the oldest where there are too many."""
        self._replies[reply.step_number] = (digest, reply)
        if len(self._replies) > self._capacity:
            del self._replies[next(iter(self._replies))]

    def step_numbers(self) -> tuple[int, ...]:
        """The steps that have a stored reply, oldest first."""
        return tuple(self._replies)
