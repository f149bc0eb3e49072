"""The whole state of the core, and what several kinds of calls do to it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from mlxrt.core.answers import Counters
from mlxrt.core.bounds import Bounds
from mlxrt.core.discard import discard
from mlxrt.core.model import Limits, ModelFacts
from mlxrt.core.pool import Pool
from mlxrt.core.requests import RequestStore
from mlxrt.core.sequence import Sequence
from mlxrt.core.session import Session
from mlxrt.core.ticket import Ticket
from mlxrt.errors import MlxrtError, Reason

_OPEN_REQUESTS_KEPT = 256


class State:
    """Sessions, pool, and steps on their way.

    Attributes:
        opens: request ids of open_session.
        tickets: accepted steps without an outcome, by number.
        ready: sessions that have a step to hand out, the next one first.
        handed_out: tickets in the order in which their outcomes must come.
        retired: handles that the next plan handed out retires.
    """

    def __init__(self, facts: ModelFacts, limits: Limits) -> None:
        """No session, every block free."""
        self.bounds = Bounds(facts, limits)
        self.limits = limits
        self.pool = Pool(self.bounds.block_counts)
        self.sessions: dict[str, Session] = {}
        self.opens = RequestStore(_OPEN_REQUESTS_KEPT)
        self.tickets: dict[int, Ticket] = {}
        self.ready: deque[Session] = deque()
        self.handed_out: deque[Ticket] = deque()
        self.retired: list[int] = []
        self.next_ticket = 1
        self.next_handle = 1
        self.counters = Counters.zero()

    def known_session(self, session_id: str) -> Session:
        """The session of this id, whatever its epoch."""
        session = self.sessions.get(session_id)
        if session is None:
            raise MlxrtError(
                Reason.SESSION_UNKNOWN,
                "no such session: closed, expired, or of an earlier start of the server",
            )
        return session

    def session(self, session_id: str, epoch: int) -> Session:
        """The session, for its present owner."""
        session = self.known_session(session_id)
        if epoch != session.epoch:
            raise stale_epoch(session, epoch)
        return session

    def retire(self, session: Session, sequences: Iterable[Sequence]) -> None:
        """Has the engine forget `sequences` once every plan that may name them has been handed
        out.
        """
        handles = self.retired if not session.queue else session.queue[-1].retired_after
        for sequence in sequences:
            sequence.disarm()
            if sequence in session.unregistered:
                del session.unregistered[sequence]
            else:
                handles.append(sequence.handle)

    def give_back(self, session: Session, blocks: list[tuple[int, int]], cause: str) -> None:
        """Ends the lease of blocks, each `(group, id)`; those that a step in flight may touch wait
        for it.
        """
        for group, block_id in blocks:
            del session.blocks[group][block_id]
        if session.inflight:
            session.inflight[-1].quarantine.extend(blocks)
        else:
            self.pool.give_back(blocks)
        self.counters.blocks_freed[cause] += len(blocks)

    def discard_inflight(self, session: Session, reason: MlxrtError) -> None:
        """Discards every step of the session that could still commit; their outcomes will answer
        `reason`.
        """
        alive = [ticket for ticket in session.inflight if ticket.doomed is None]
        self.discard(session, alive)
        for ticket in alive:
            ticket.doomed = reason
        self.wake(session)

    def wake(self, session: Session) -> None:
        """Has next_plan look at a session whose next step waited for masks."""
        if session.queue and session.queue[0].can_go_on and session not in self.ready:
            self.ready.append(session)

    def discard(self, session: Session, tickets: list[Ticket]) -> None:
        """Takes back what `tickets` planned and gives new handles to what the engine may hold
        otherwise.
        """
        if not tickets:
            return
        renamed = discard(session, tickets, self.bounds)
        self.retire(session, renamed)
        for sequence in renamed:
            sequence.handle = self.next_handle
            self.next_handle += 1
            session.unregistered[sequence] = None


def stale_epoch(session: Session, epoch: int) -> MlxrtError:
    """The refusal of an epoch that is not the session's."""
    return MlxrtError(
        Reason.EPOCH_STALE,
        f"epoch {epoch} is not the session's, {session.epoch}: somebody took the session over",
        metadata={"epoch": str(session.epoch)},
    )
