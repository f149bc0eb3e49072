"""What clients saw and what the server did, in the order in which it happened."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field
from typing import Any

from mlxrt_client.v1 import step_pb2


@dataclass(slots=True)
class Asked:
    """A client sent a step (again)."""

    time_us: int
    client: str
    session_id: str
    epoch: int
    step_number: int
    digest: str


@dataclass(slots=True)
class Answered:
    """A client got an answer to a step; `reply` is what all answers to it must equal."""

    time_us: int
    client: str
    session_id: str
    step_number: int
    reply: bytes
    committed: bool


@dataclass(slots=True)
class Settled:
    """A server ended an accepted step; `reply` as in Answered."""

    time_us: int
    instance: int
    session_id: str
    epoch: int
    step_number: int
    digest: str
    reply: bytes
    committed: bool


@dataclass(slots=True)
class History:
    """A run.

    Attributes:
        notes: faults and life events, for people.
        violations: what should not have happened; the run stops at the first.
    """

    asked: list[Asked] = field(default_factory=list)
    answered: list[Answered] = field(default_factory=list)
    settled: list[Settled] = field(default_factory=list)
    notes: list[tuple[int, str]] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)

    def digest(self) -> str:
        """One hash over all of it: two runs were the same if theirs are."""
        return hashlib.sha256(repr(self).encode()).hexdigest()

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        plain = asdict(self)
        for key in ("answered", "settled"):
            for entry in plain[key]:
                entry["reply"] = entry["reply"].hex()
        return plain


def request_digest(step: step_pb2.StepRequest) -> str:
    """Identifies a step's content, its sender left out."""
    content = step_pb2.StepRequest()
    content.CopyFrom(step)
    content.ClearField("session")
    return hashlib.blake2b(
        content.SerializeToString(deterministic=True), digest_size=16
    ).hexdigest()


def comparable(reply: step_pb2.StepResponse) -> bytes:
    """The part of a reply that is equal in all answers to a step."""
    content = step_pb2.StepResponse()
    content.CopyFrom(reply)
    content.ClearField("timings")
    content.replayed = False
    data: bytes = content.SerializeToString(deterministic=True)
    return data
