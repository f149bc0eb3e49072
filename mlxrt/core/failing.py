"""Failure of single sequences in a step that commits otherwise, and of those that read what they
were to compute.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from mlxrt.core.block import Block
from mlxrt.core.bounds import Bounds
from mlxrt.core.fill import redo, undo
from mlxrt.core.sequence import Sequence
from mlxrt.core.ticket import Ticket
from mlxrt.errors import MlxrtError, Reason


def fail_sequences(failures: Mapping[Sequence, MlxrtError], ticket: Ticket, bounds: Bounds) -> None:
    """Fails sequences in `ticket`, which commits otherwise; later steps of theirs come to nothing.

    Their rows may have left anything in their blocks, and rows in steps behind may not run: what
    they wrote or were to write does not count as computed, whatever was there before. A sequence
    with rows, in this step or in one behind, that read it fails too, in every step that has no
    reply yet.
    """
    session = ticket.session
    alive = [ticket, *(each for each in session.inflight if each.doomed is None)]
    suspects: set[Block] = set()
    fallen = {sequence: (ticket, failure) for sequence, failure in failures.items()}
    failed = list(fallen)
    while fallen:
        undo(alive, bounds)
        for sequence, (where, failure) in fallen.items():
            sequence.fail(failure)
            where.failed.append(failure.reason)
        readers: dict[Sequence, tuple[Ticket, MlxrtError]] = {}
        for each in alive:
            redo([each], bounds)
            suspects.update(write.block for write in each.writes if write.sequence in fallen)
            suspects.update(copy.destination for copy in each.copies if copy.source in suspects)
            for reader, failure in _deprived(each, suspects, bounds.block_size):
                readers.setdefault(reader, (each, failure))
        fallen = readers
        failed += fallen
    for each in alive:
        each.irregular = True
    for sequence in failed:
        sequence.revert()
    session.distrust_all()


def _deprived(
    ticket: Ticket, suspects: set[Block], block_size: int
) -> Iterator[tuple[Sequence, MlxrtError]]:
    """Sequences whose rows in the step read more of a block than is computed, and why they fail."""
    if not ticket.reads:
        return
    readers = ticket.readers(block_size)
    for block in suspects:
        for sequence, needed in readers.get(block, ()):
            if sequence.failure is None and block.filled < needed:
                yield (
                    sequence,
                    MlxrtError(
                        Reason.BLOCK_UNFILLED,
                        f"block {block.block_id} of group {block.group}, which the rows of step "
                        f"{ticket.step_number} read, was to be computed by a sequence that failed",
                    ),
                )
