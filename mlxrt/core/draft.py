"""A step while it is validated: what it would change, beside a state that it has not touched
yet.
"""

from __future__ import annotations

from mlxrt.core.block import Block, Table
from mlxrt.core.sequence import Sequence
from mlxrt.core.session import Session
from mlxrt.core.ticket import ItemRun, Read


class TableChange:
    """New tables of one sequence, and how to tell the engine.

    Attributes:
        updates: `(group, first index, block ids, length)`, to be made in order.
        replaced: the sequence stands at 0 afterwards.
        pierced: entries became holes, so what was verified may not hold.
    """

    __slots__ = ("pierced", "replaced", "tables", "updates")

    def __init__(self, tables: list[Table]) -> None:
        """No change yet; `tables` are the caller's own copies."""
        self.tables = tables
        self.updates: list[tuple[int, int, list[int], int]] = []
        self.replaced = False
        self.pierced = False


class Draft:
    """The changes of one step, in the order in which they would be made.

    Attributes:
        released: by id, sequences that go.
        registered: by id, sequences that come; not yet in the session, without a handle.
        refs: by block, how its number of table entries changes.
        changes: by sequence, its new tables.
        copies: `(source, destination)`; `copied[destination]` is how far it is then filled.
        decodes: one per decode id; `checked_decodes` are the indices that did not take the plain
            path.
        items: one per item.
        meant: by failed sequence, where it would stand after the step and its tables, had it not
            failed.
        writes: `(sequence, block, lowest, end offset, position of offset 0, drafted)` of all rows
            but plain decodes; rows of drafts don't count for the end.
        reads: what rows read that was not known to be computed before.
        distrust: the step touches blocks on which other sequences' plain path or verified range may
            rest.
    """

    __slots__ = (
        "_computed",
        "_takers",
        "changes",
        "checked_decodes",
        "copied",
        "copies",
        "decodes",
        "distrust",
        "items",
        "meant",
        "reads",
        "refs",
        "registered",
        "released",
        "session",
        "writes",
    )

    def __init__(self, session: Session) -> None:
        """A step that changes nothing."""
        self.session = session
        self.released: dict[int, Sequence] = {}
        self.registered: dict[int, Sequence] = {}
        self.refs: dict[Block, int] = {}
        self.changes: dict[Sequence, TableChange] = {}
        self.copies: list[tuple[Block, Block]] = []
        self.copied: dict[Block, int] = {}
        self.decodes: list[Sequence] = []
        self.checked_decodes: set[int] = set()
        self.items: list[ItemRun] = []
        self.meant: dict[Sequence, tuple[int, list[Table]]] = {}
        self.writes: list[tuple[Sequence, Block, int, int, int, bool]] = []
        self.reads: list[Read] = []
        self.distrust = False
        self._computed: dict[Block, int] = {}
        self._takers: dict[Block, list[int]] | None = None

    def sequence(self, sequence_id: int) -> Sequence | None:
        """The sequence that has this id after releases and registrations."""
        found = self.registered.get(sequence_id)
        if found is None and sequence_id not in self.released:
            found = self.session.sequences.get(sequence_id)
        return found

    def tables(self, sequence: Sequence) -> list[Table]:
        """Its tables after the step's changes."""
        change = self.changes.get(sequence)
        return sequence.tables if change is None else change.tables

    def ref_count(self, block: Block) -> int:
        """Table entries that name the block after the step's changes."""
        return block.refs + self.refs.get(block, 0)

    def filled(self, block: Block) -> int:
        """Leading positions that are computed before the step's rows, and by those so far that
        write a block which other tables name.
        """
        computed = self._computed.get(block)
        return self.copied.get(block, block.filled) if computed is None else computed

    def compute(self, block: Block, lowest: int, end: int) -> None:
        """Counts rows at offsets `lowest` to `end - 1` for those that come behind them."""
        filled = self.filled(block)
        if filled >= lowest:
            self._computed[block] = max(filled, end)

    def lose(self, block: Block, lowest: int) -> None:
        """Counts offset `lowest` and those behind it as not computed for rows that come behind."""
        self._computed[block] = min(self.filled(block), lowest)

    def may_write(self, block: Block, place: int) -> bool:
        """Whether no other table entry names the block but such as take it in this very step, for
        rows behind those of `place`: the writer's index among the items, -1 for a decode id.
        """
        return self.is_taken_behind(block, place, 1)

    def is_taken_behind(self, block: Block, place: int, own: int) -> bool:
        """Whether all table entries that name the block, but for `own` of them, take it in this
        very step for rows behind those of `place`.
        """
        others = self.ref_count(block) - own
        if others == 0:
            return True
        if self._takers is None:
            self._takers = self._find_takers()
        return sum(taker > place for taker in self._takers.get(block, ())) == others

    def _find_takers(self) -> dict[Block, list[int]]:
        """By block, the table entries that take it: for each the index of an item with rows."""
        takers: dict[Block, list[int]] = {}
        for index, run in enumerate(self.items):
            sequence = run.sequence
            change = self.changes.get(sequence)
            is_new = self.registered.get(sequence.sequence_id) is sequence
            if not run.count or not (is_new or change is not None):
                continue
            whole = is_new or (change is not None and change.replaced)
            for old, table in zip(sequence.tables, self.tables(sequence), strict=True):
                for block in table if whole else table[len(old) :]:
                    if block is not None:
                        takers.setdefault(block, []).append(index)
        return takers

    def add_refs(self, table: Table) -> None:
        """Counts entries that come."""
        refs = self.refs
        for block in table:
            if block is not None:
                refs[block] = refs.get(block, 0) + 1
                if block.is_tail:
                    self.distrust = True

    def drop_refs(self, table: Table) -> None:
        """Takes entries that go off the counts."""
        refs = self.refs
        for block in table:
            if block is not None:
                refs[block] = refs.get(block, 0) - 1
