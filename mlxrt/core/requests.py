"""Request ids: a repeated call gets the first answer."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from mlxrt.errors import MlxrtError, Reason, field_invalid

_MAX_ID_BYTES = 64


class RequestStore:
    """The last `capacity` requests, each with its content and its answer."""

    __slots__ = ("_capacity", "_entries")

    def __init__(self, capacity: int) -> None:
        """Empty."""
        self._capacity = capacity
        self._entries: dict[str, tuple[Hashable, Any]] = {}

    def find(self, request_id: str, content: Hashable) -> Any:
        """The answer to the same request, or None where the id is new.

        Raises:
            MlxrtError: FIELD_INVALID where the id is not 1 to 64 bytes, REQUEST_MISMATCH where it
            had other content.
        """
        if not 1 <= len(request_id.encode("utf-8", "surrogatepass")) <= _MAX_ID_BYTES:
            raise field_invalid("request_id", f"must be 1 to {_MAX_ID_BYTES} bytes")
        entry = self._entries.get(request_id)
        if entry is None:
            return None
        if entry[0] != content:
            raise MlxrtError(
                Reason.REQUEST_MISMATCH,
                "this request id was used with other content; use a fresh id for each request",
            )
        return entry[1]

    def store(self, request_id: str, content: Hashable, answer: Any) -> None:
        """Remembers the answer and forgets the oldest where there are too many."""
        self._entries[request_id] = (content, answer)
        if len(self._entries) > self._capacity:
            del self._entries[next(iter(self._entries))]

    def clear(self) -> None:
        """Forgets every request: their sender may not repeat them any more."""
        self._entries.clear()

    def ids(self) -> tuple[str, ...]:
        """The ids remembered, oldest first."""
        return tuple(self._entries)
