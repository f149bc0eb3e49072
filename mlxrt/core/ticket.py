"""One accepted step."""

from __future__ import annotations

from collections.abc import Sequence as Row
from typing import TYPE_CHECKING

from mlxrt.core.block import Block, Table
from mlxrt.core.sequence import Sequence
from mlxrt.core.step import Mask, StepPlan, Timings
from mlxrt.errors import MlxrtError, Reason

if TYPE_CHECKING:
    from mlxrt.core.session import Session


class Write:
    """Rows of a sequence in one block, at offsets `lowest` to `end - 1`; `filled` is what the block
    had before. Rows of drafts lie at `end` and above and count once they are accepted.

    Attributes:
        base: position of the block's offset 0.
        drafted: rows of drafts lie in the block too.
        left_out: the plan has no such rows, because the sequence failed first.
    """

    __slots__ = ("base", "block", "drafted", "end", "filled", "left_out", "lowest", "sequence")

    def __init__(
        self,
        sequence: Sequence,
        block: Block,
        lowest: int,
        end: int,
        base: int = 0,
        drafted: bool = False,
    ) -> None:
        """Rows that make() will count."""
        self.sequence = sequence
        self.block = block
        self.lowest = lowest
        self.end = end
        self.base = base
        self.drafted = drafted
        self.filled = 0
        self.left_out = False

    def make(self) -> None:
        """Counts the rows; those of a failed sequence compute nothing, and what was there before
        does not count either: nobody behind them means that.
        """
        block = self.block
        self.filled = block.filled
        if self.sequence.failure is not None:
            block.filled = min(block.filled, self.lowest)
        elif block.filled >= self.lowest:
            computed = self.lowest if self.drafted else block.filled
            block.filled = max(computed, self.end)


class Read:
    """Rows of a sequence that read positions `first` to `end - 1` through `table`."""

    __slots__ = ("end", "first", "sequence", "table")

    def __init__(self, sequence: Sequence, table: Table, first: int, end: int) -> None:
        """`table` is kept, not copied: tables are replaced, never changed."""
        self.sequence = sequence
        self.table = table
        self.first = first
        self.end = end


class Copy:
    """One block copy; `filled` is what the destination had before."""

    __slots__ = ("destination", "filled", "source")

    def __init__(self, source: Block, destination: Block) -> None:
        """A copy that make_copies will count."""
        self.source = source
        self.destination = destination
        self.filled = 0


class ItemRun:
    """One item of an accepted step.

    Attributes:
        start, count: its rows.
        token_ids: explicit tokens; None where the rows take others.
        draft_tokens: verified behind the rows; not in `count`.
        prompt_rows: as Entry has them.
        position: where the sequence stands after the item, no draft accepted.
        entry_index: index into the plan's entries; None without rows or while the sequence has
            failed.
    """

    __slots__ = (
        "count",
        "draft_tokens",
        "entry_index",
        "position",
        "prompt_rows",
        "return_logits",
        "sample",
        "sequence",
        "start",
        "token_ids",
    )

    def __init__(self, sequence: Sequence) -> None:
        """An item without rows."""
        self.sequence = sequence
        self.start = 0
        self.count = 0
        self.token_ids: Row[int] | None = None
        self.draft_tokens: Row[int] = ()
        self.prompt_rows = 0
        self.sample = False
        self.return_logits = False
        self.position = 0
        self.entry_index: int | None = None


class Ticket:
    """A step between acceptance and its outcome.

    Attributes:
        decode_sequences, decode_starts, decode_tails: parallel, one per decode id; the tails are
            empty where `writes` has the blocks instead, or the sequence had failed.
        absent: indices into decode_sequences that the plan leaves out, because the sequence failed
            first.
        writes, copies: what to undo when the step is discarded; in the order made.
        reads: what of the rows' reads rests on steps that may still fail.
        superseded: sequences whose tables a later step replaced: this step no longer moves their
            position.
        irregular: set where commit must look at each decode alone.
        failed: reasons of the sequences that failed in it.
        doomed: why the step will not commit; None while it may.
        handed_out: next_plan has given it away, whole or its sampling.
        sampled: of a step that defers its sampling, `sampled_rows`; None for others.
        masks, masks_digest: what came for it; None before.
        forwarded, forward_ended: its forward was handed out, and has an outcome.
        forward_timings: of that outcome.
        quarantine: blocks, `(group, id)`, that were freed while this was the session's last
            accepted step.
        retired_after: handles released outside a step while this was the last one in the session's
            queue.
    """

    __slots__ = (
        "_readers",
        "absent",
        "copies",
        "decode_sequences",
        "decode_starts",
        "decode_tails",
        "digest",
        "doomed",
        "epoch",
        "failed",
        "forward_ended",
        "forward_timings",
        "forwarded",
        "handed_out",
        "irregular",
        "items",
        "masks",
        "masks_digest",
        "number",
        "plan",
        "quarantine",
        "reads",
        "retired_after",
        "sampled",
        "session",
        "step_number",
        "superseded",
        "writes",
    )

    def __init__(self, number: int, session: Session, step_number: int, digest: bytes) -> None:
        """A step with nothing in it."""
        self.number = number
        self.session = session
        self.epoch = session.epoch
        self.step_number = step_number
        self.digest = digest
        self.plan = StepPlan(number)
        self.decode_sequences: list[Sequence] = []
        self.decode_starts: list[int] = []
        self.decode_tails: list[tuple[Block, ...]] = []
        self.absent: set[int] = set()
        self.items: list[ItemRun] = []
        self.writes: list[Write] = []
        self.copies: list[Copy] = []
        self.reads: list[Read] = []
        self._readers: dict[Block, list[tuple[Sequence, int]]] | None = None
        self.superseded: set[Sequence] = set()
        self.irregular = False
        self.failed: list[Reason] = []
        self.doomed: MlxrtError | None = None
        self.handed_out = False
        self.sampled: dict[int, int] | None = None
        self.masks: tuple[Mask, ...] | None = None
        self.masks_digest = b""
        self.forwarded = False
        self.forward_ended = False
        self.forward_timings: Timings | None = None
        self.quarantine: list[tuple[int, int]] = []
        self.retired_after: list[int] = []

    @property
    def may_have_run(self) -> bool:
        """Whether the engine may have written to blocks for it, now or later."""
        return (self.handed_out or self.forwarded) and not self.plan.cancelled

    @property
    def can_go_on(self) -> bool:
        """Whether next_plan can hand out what comes next of it."""
        return not self.forwarded or self.masks is not None or self.doomed is not None

    @property
    def waits_for_masks(self) -> bool:
        """Whether nothing but its client can bring it further."""
        return self.forward_ended and not self.can_go_on

    def readers(self, block_size: int) -> dict[Block, list[tuple[Sequence, int]]]:
        """`reads` by block: sequences, and how many of its positions each needs."""
        if self._readers is None:
            self._readers = {}
            for read in self.reads:
                for index in range(read.first // block_size, -(-read.end // block_size)):
                    block = read.table[index]
                    assert block is not None
                    needed = min(block_size, read.end - index * block_size)
                    self._readers.setdefault(block, []).append((read.sequence, needed))
        return self._readers

    def handles_of(self, masks: tuple[Mask, ...]) -> dict[int, bytes]:
        """The masks by handle."""
        sequences = (*self.decode_sequences, *(run.sequence for run in self.items))
        handles = {sequence.sequence_id: sequence.handle for sequence in sequences}
        return {handles[mask.sequence_id]: mask.allowed for mask in masks}
