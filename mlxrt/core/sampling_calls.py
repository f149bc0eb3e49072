"""Deferred sampling: masks come for a step whose forward has been handed out, or soon will be."""

from __future__ import annotations

from collections.abc import Sequence as Row

from mlxrt.core.answers import Accepted, InFlight, Replayed
from mlxrt.core.mask_checks import check_masks
from mlxrt.core.session import Session
from mlxrt.core.state import State
from mlxrt.core.step import Mask
from mlxrt.core.step_errors import numbered
from mlxrt.core.ticket import Ticket
from mlxrt.errors import Reason, field_invalid


def take_masks(
    state: State, session: Session, step_number: int, masks: Row[Mask], digest: bytes
) -> Accepted | Replayed | InFlight:
    """As Core.sample, less the lease."""
    expected = session.next_step_number
    if step_number < 1:
        raise field_invalid("step_number", "the first step is 1")
    if step_number >= expected:
        raise numbered(Reason.STEP_GAP, expected, f"step {step_number} is not accepted")
    for ticket in session.inflight:
        if ticket.step_number == step_number:
            return _take(state, session, ticket, masks, digest)
    stored = session.replies.find(step_number)
    if stored is None:
        raise numbered(Reason.STEP_STALE, expected, f"the reply of step {step_number} is gone")
    return Replayed(stored[1])


def _take(
    state: State, session: Session, ticket: Ticket, masks: Row[Mask], digest: bytes
) -> Accepted | InFlight:
    expected, number = session.next_step_number, ticket.step_number
    if ticket.sampled is None:
        raise numbered(Reason.STEP_MISMATCH, expected, f"step {number} did not defer its sampling")
    if ticket.masks is not None:
        if ticket.masks_digest != digest:
            raise numbered(Reason.STEP_MISMATCH, expected, f"step {number} got other masks")
        return InFlight(ticket.number)
    check_masks(masks, ticket.sampled, state.limits)
    ticket.masks = tuple(masks)
    ticket.masks_digest = digest
    state.wake(session)
    return Accepted(ticket.number)
