"""What the core answers to a call: plain values, never a view of its state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mlxrt.core.step import StepReply
from mlxrt.errors import MlxrtError, Reason


@dataclass(frozen=True, slots=True)
class SessionRef:
    """A session and the epoch under which the caller knows it."""

    session_id: str
    epoch: int


@dataclass(frozen=True, slots=True)
class OpenedSession:
    """The answer to open_session; `lease_ttl_ms` as granted."""

    session: SessionRef
    lease_ttl_ms: int


@dataclass(frozen=True, slots=True)
class ResumedSession:
    """The answer to resume; `lease_ttl_ms` from now until the lease ends."""

    session: SessionRef
    lease_ttl_ms: int
    next_step_number: int


@dataclass(frozen=True, slots=True)
class SequenceSnapshot:
    """Where a sequence stands after the last step that committed.

    Attributes:
        position: number of positions whose keys and values its tables hold.
        token_count: number of known tokens.
        tables: block ids by group, 0 for a hole; empty unless asked for. Groups with an empty table
            are left out.
        token_ids: the known tokens; empty unless asked for.
        failure: set where the sequence has failed.
    """

    sequence_id: int
    position: int
    token_count: int
    tables: Mapping[int, Sequence[int]]
    token_ids: Sequence[int]
    failure: MlxrtError | None


@dataclass(frozen=True, slots=True)
class SessionSnapshot:
    """The answer to get_session.

    Attributes:
        inflight_step_numbers: accepted steps whose outcome has not come, ascending.
        leased_blocks: block ids by group, ascending; groups without one are left out.
        sequences: by ascending id.
    """

    lease_ttl_ms: int
    next_step_number: int
    inflight_step_numbers: Sequence[int]
    leased_blocks: Mapping[int, Sequence[int]]
    sequences: Sequence[SequenceSnapshot]


@dataclass(frozen=True, slots=True)
class ClosedSession:
    """The answer to close_session, and what expire says of each session that it ended.

    Attributes:
        freed_block_counts: by group; groups that had none are left out.
        released_sequence_count: sequences that went with the session.
    """

    session_id: str
    client_name: str
    freed_block_counts: Mapping[int, int]
    released_sequence_count: int


@dataclass(frozen=True, slots=True)
class Accepted:
    """The step was taken and will run; `ticket` names it in next_plan and finish."""

    ticket: int


@dataclass(frozen=True, slots=True)
class InFlight:
    """A repeat of a step that has no outcome yet: wait for the same ticket."""

    ticket: int


@dataclass(frozen=True, slots=True)
class Replayed:
    """A repeat of a step that has its reply."""

    reply: StepReply


@dataclass(slots=True)
class Counters:
    """What happened since the start; each only rises.

    Attributes:
        sequences_failed: by reason, each sequence once.
        blocks_freed: by cause: "free_blocks", "free_sequences", "close", "expiry", "drain".
    """

    sessions_opened: int
    sessions_closed: int
    sessions_expired: int
    sessions_drained: int
    sessions_resumed: int
    steps_accepted: int
    steps_committed: int
    steps_discarded: int
    steps_replayed: int
    sequences_registered: int
    sequences_failed: dict[Reason, int]
    blocks_allocated: int
    blocks_freed: dict[str, int]

    @classmethod
    def zero(cls) -> Counters:
        """All zero."""
        causes = ("free_blocks", "free_sequences", "close", "expiry", "drain")
        return cls(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, {}, 0, dict.fromkeys(causes, 0))


@dataclass(frozen=True, slots=True)
class Census:
    """How much of everything there is now.

    Attributes:
        inflight_steps: accepted and without an outcome; `queued_steps` of them wait for the engine.
        free_blocks, leased_blocks, shared_blocks: by group. A block given back while a step in
            flight may touch it is neither free nor leased; one that two table entries name or more
            is shared.
    """

    sessions: int
    sequences: int
    inflight_steps: int
    queued_steps: int
    free_blocks: tuple[int, ...]
    leased_blocks: tuple[int, ...]
    shared_blocks: tuple[int, ...]
