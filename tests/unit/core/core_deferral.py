"""Steps that defer their sampling: what of them is handed out next, and who waits for masks."""

from __future__ import annotations

from collections.abc import Container

from mlxrt.core.step import Phase, StepPlan


class Deferral:
    """Tickets by how far they have come.

    Attributes:
        deferred: those that defer their sampling; `numbers` has their step numbers.
        masked: those whose masks have come.
        forwarded, ended: those whose forward was handed out, and has ended.
        plans: of their forwards, with the handles that fail in them.
    """

    def __init__(self, doomed: Container[int]) -> None:
        self.numbers: dict[int, int] = {}
        self.masked: set[int] = set()
        self.forwarded: set[int] = set()
        self.ended: set[int] = set()
        self.plans: dict[int, tuple[StepPlan, set[int]]] = {}
        self._doomed = doomed

    def next_phase(self, ticket: int) -> Phase:
        """What the next plan of a ticket is."""
        if ticket in self.forwarded:
            return Phase.SAMPLING
        waits = ticket in self.numbers and ticket not in self.masked
        return Phase.FORWARD if waits and ticket not in self._doomed else Phase.WHOLE

    def can_go_on(self, ticket: int) -> bool:
        """Whether the next plan of a ticket can be handed out."""
        return ticket not in self.forwarded or ticket in self.masked or ticket in self._doomed

    def waits(self, ticket: int) -> bool:
        """Whether only its client can bring a ticket further."""
        return ticket in self.ended and not self.can_go_on(ticket)
