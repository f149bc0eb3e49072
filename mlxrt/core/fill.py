"""How far blocks are computed: undoing and redoing what accepted steps had counted."""

from __future__ import annotations

from mlxrt.core.bounds import Bounds
from mlxrt.core.ticket import Ticket, Write


def make_copies(ticket: Ticket) -> None:
    """Counts the step's copies; every source is read before any destination is written."""
    filled = [copy.source.filled for copy in ticket.copies]
    for copy in ticket.copies:
        copy.filled = copy.destination.filled
    for copy, computed in zip(ticket.copies, filled, strict=True):
        copy.destination.filled = computed


def undo(tickets: list[Ticket], bounds: Bounds) -> None:
    """Makes every block as far computed as before `tickets`: the last steps of a session, oldest
    first.
    """
    for ticket in reversed(tickets):
        for write in reversed(ticket.writes):
            write.block.filled = write.filled
        for tails, start in zip(ticket.decode_tails, ticket.decode_starts, strict=True):
            for block in tails:
                block.filled = start % bounds.block_size
        for copy in ticket.copies:
            copy.destination.filled = copy.filled


def redo(tickets: list[Ticket], bounds: Bounds) -> None:
    """Counts `tickets` again after undo, less what sequences did that have failed meanwhile."""
    for ticket in tickets:
        make_copies(ticket)
        for index, tails in enumerate(ticket.decode_tails):
            if tails:
                sequence = ticket.decode_sequences[index]
                offset = ticket.decode_starts[index] % bounds.block_size
                ticket.writes.extend(Write(sequence, block, offset, offset + 1) for block in tails)
                ticket.decode_tails[index] = ()
        for write in ticket.writes:
            write.make()
