"""What the core should do, said in the plainest way: copy the state, replay the steps.

A session is a state in which everything committed is true (`base`) and a list of what was accepted
since (`events`). The state after all of it is replayed from the beginning whenever it is wanted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from core_engine import Content, row_content, sampled_token

from mlxrt.core.model import ModelFacts
from mlxrt.core.step import Item, StepInput, TokenSource


@dataclass
class Known:
    """A sequence: its tables by group (0 is a hole), tokens and position; `meant` are those of one
    that failed, had it not.
    """

    tables: list[list[int]]
    tokens: list[int]
    position: int = 0
    given: bool = False
    failed: bool = False
    unsettled: bool = False
    meant_position: int = 0
    meant_tables: list[list[int]] | None = None

    def copy(self) -> Known:
        return Known(
            [list(t) for t in self.tables],
            list(self.tokens),
            self.position,
            self.given,
            self.failed,
            self.unsettled,
            self.meant_position,
            None if self.meant_tables is None else [list(t) for t in self.meant_tables],
        )


@dataclass
class State:
    """Sequences by id; of every leased block the contents of its computed positions, from its first
    on.
    """

    sequences: dict[int, Known] = field(default_factory=dict)
    blocks: dict[tuple[int, int], list[Content]] = field(default_factory=dict)

    def copy(self) -> State:
        return State(
            {i: s.copy() for i, s in self.sequences.items()},
            {key: list(contents) for key, contents in self.blocks.items()},
        )

    def drop(self, key: tuple[int, int]) -> None:
        """The block is given back."""
        del self.blocks[key]
        for sequence in self.sequences.values():
            if sequence.meant_tables is not None:
                table = sequence.meant_tables[key[0]]
                table[:] = [0 if block_id == key[1] else block_id for block_id in table]

    def named(self) -> list[tuple[int, int]]:
        """Every table entry but holes."""
        return [
            (group, block_id)
            for sequence in self.sequences.values()
            for group, table in enumerate(sequence.tables)
            for block_id in table
            if block_id
        ]


@dataclass
class StepEvent:
    """An accepted step; `dead` are sequences that had failed before, `starts` the first rows of
    all, `unwritten` the slots that rows of the dead were to write.

    `ran` are the sequences whose rows were handed to the engine, None before; `lost` those that
    fail from this step on, with others that they read.
    """

    ticket: int
    step: StepInput
    dead: set[int]
    starts: dict[int, int] = field(default_factory=dict)
    ran: set[int] | None = None
    lost: set[int] = field(default_factory=set)
    unwritten: dict[int, list[tuple[int, int, int]]] = field(default_factory=dict)


Event = StepEvent | Callable[[State], None]


@dataclass
class Rows:
    """What the rows of one sequence left; `borrowed` positions that they read were written in the
    same step for another one.
    """

    contents: list[Content]
    token: int | None
    position: int
    accepted: int = 0
    borrowed: int = 0


class Machine:
    """How a state changes, for one model."""

    def __init__(self, facts: ModelFacts) -> None:
        self.facts = facts
        self.groups = range(len(facts.groups))
        self._writers: dict[tuple[int, int, int], Known] = {}

    def first_read(self, group: int, position: int) -> int:
        window = self.facts.groups[group].window
        return max(0, position - window + 1) if window else 0

    def accept(self, state: State, event: StepEvent) -> None:
        """Releases, registrations and table changes."""
        step = event.step
        for sequence_id in step.releases:
            del state.sequences[sequence_id]
        for new in step.new_sequences:
            tables = [list(new.tables.get(group, [])) for group in self.groups]
            state.sequences[new.sequence_id] = Known(tables, list(new.prompt))
        for sequence_id in event.lost:
            state.sequences[sequence_id].failed = True
        for item in step.items:
            sequence = state.sequences[item.sequence_id]
            if item.sequence_id not in event.dead:
                self.change_tables(sequence, item)
            else:
                self._mean_tables(state, sequence, item)

    def _mean_tables(self, state: State, sequence: Known, item: Item) -> None:
        """Where the item would leave the tables of a sequence that failed."""
        if item.append is None and item.replace is None and not item.leading_holes:
            return
        tables = sequence.tables if sequence.meant_tables is None else sequence.meant_tables
        if item.replace is not None:
            tables, sequence.meant_position = [[] for _ in self.groups], 0
        longest = -(-self.facts.max_model_length // self.facts.block_size)
        for group in self.groups:
            ids = (item.append or item.replace or {}).get(group, [])
            found = [block_id if (group, block_id) in state.blocks else 0 for block_id in ids]
            tables = [*tables[:group], (tables[group] + found)[:longest], *tables[group + 1 :]]
        for group in self.groups:
            holes = min((item.leading_holes or {}).get(group, 0), len(tables[group]))
            tables[group][:holes] = [0] * holes
        sequence.meant_tables = tables

    def change_tables(self, sequence: Known, item: Item) -> None:
        if item.replace is not None:
            sequence.tables = [list(item.replace.get(group, [])) for group in self.groups]
            sequence.position = sequence.meant_position = 0
        for group, ids in (item.append or {}).items():
            sequence.tables[group] += ids
        for group, count in (item.leading_holes or {}).items():
            sequence.tables[group][:count] = [0] * count

    def run(
        self, state: State, event: StepEvent, failing: set[int], *, settled: bool = True
    ) -> dict[int, Rows]:
        """The whole step; sequences in `failing` (ids) fail. Answers the rows by sequence id.

        Unless `settled`, no draft is accepted, and who has drafts can't have rows any more.
        """
        self.accept(state, event)
        read = {(g, d): list(state.blocks[g, s]) for g, s, d in event.step.copies}
        state.blocks.update(read)
        self._writers = {}
        results: dict[int, Rows] = {}
        for item in _rows_of(event.step):
            sequence = state.sequences[item.sequence_id]
            sequence.failed |= item.sequence_id in failing
            end = event.starts.get(item.sequence_id, 0) + item.row_count
            sequence.meant_position = min(end, self.facts.max_model_length)
            if item.sequence_id in event.dead:
                self._unfill(state, event.unwritten.get(item.sequence_id, []))
            elif sequence.failed:
                self._unfill(state, self._slots(sequence, item, event))
            else:
                results[item.sequence_id] = self._rows(state, sequence, item, settled)
        return results

    def _unfill(self, state: State, slots: list[tuple[int, int, int]]) -> None:
        """Nothing is computed from these slots on, each to the end of its block."""
        for group, block_id, offset in slots:
            del state.blocks.get((group, block_id), [])[offset:]

    def starts(self, planned: State, step: StepInput, dead: set[int]) -> dict[int, int]:
        """First row of every sequence, of the dead as they were meant."""
        after = planned.copy()
        self.accept(after, StepEvent(0, step, dead))
        given = {
            i.sequence_id: i.start_position for i in step.items if i.start_position is not None
        }
        return {
            i: given.get(i, sequence.meant_position if i in dead else sequence.position)
            for i, sequence in after.sequences.items()
        }

    def overwritten(self, state: State, event: StepEvent) -> list[tuple[int, int, int]]:
        """Slots to which the engine may have written for the step, also for sequences that failed
        once it had their rows; `state` is that after the step.
        """
        if event.ran is None:
            return []
        slots = [(group, block_id, 0) for group, _, block_id in event.step.copies]
        for item in _rows_of(event.step):
            if item.sequence_id in event.ran:
                slots += self._slots(state.sequences[item.sequence_id], item, event)
        return slots

    def _slots(self, sequence: Known, item: Item, event: StepEvent) -> list[tuple[int, int, int]]:
        start = event.starts[item.sequence_id]
        size = self.facts.block_size
        return [
            (group, sequence.tables[group][position // size], position % size)
            for position in range(start, start + item.row_count + len(item.draft_tokens))
            for group in self.groups
        ]

    def _rows(self, state: State, sequence: Known, item: Item, settled: bool) -> Rows:
        start = sequence.position if item.start_position is None else item.start_position
        if item.source is TokenSource.EXPLICIT:
            sequence.tokens[start:] = item.token_ids
            sequence.given = True
        end = start + item.row_count
        rows = Rows([], None, end)
        for position in range(start, end):
            content = self._row(state, sequence, position, sequence.tokens[position])
            rows.contents.append(content)
        rows.borrowed = self._borrowed(sequence, start)
        if item.sample:
            rows.token = self._sampled(rows)
            sequence.given = True
        kept = settled
        for position, draft in enumerate(item.draft_tokens, end):
            kept = kept and rows.token == draft
            content = self._row(state, sequence, position, draft, keep=kept)
            if kept:
                rows.contents.append(content)
                rows.position, rows.accepted = position + 1, rows.accepted + 1
                sequence.tokens.append(draft)
                rows.token = self._sampled(rows)
        sequence.position = sequence.meant_position = rows.position
        if rows.token is not None:
            sequence.tokens.append(rows.token)
        sequence.unsettled = bool(item.draft_tokens) and not settled
        return rows

    def _borrowed(self, sequence: Known, start: int) -> int:
        size = self.facts.block_size
        slots = [
            (group, sequence.tables[group][p // size], p % size)
            for group in self.groups
            for p in range(self.first_read(group, start), start)
        ]
        return sum(self._writers.get(slot, sequence) is not sequence for slot in slots)

    def _sampled(self, rows: Rows) -> int:
        """The token after the rows. One that will fail is never seen; until then plans only count
        it.
        """
        last = rows.contents[-1]
        return 0 if last is None else sampled_token(last, self.facts.vocabulary_size)

    def _row(
        self, state: State, sequence: Known, position: int, token: int, *, keep: bool = True
    ) -> Content:
        """Computes a row; what a draft that is not kept leaves behind the end of a block is
        nobody's, and inside the block it takes the place of what stood there.
        """
        size = self.facts.block_size
        read: list[Content] = []
        for group in self.groups:
            for p in range(self.first_read(group, position), position):
                block = state.blocks[group, sequence.tables[group][p // size]]
                read.append(block[p % size] if p % size < len(block) else None)
        content = row_content(token, position, read)
        for group in self.groups:
            block_id, offset = sequence.tables[group][position // size], position % size
            self._writers[group, block_id, offset] = sequence
            contents = state.blocks[group, block_id]
            if keep:
                if offset <= len(contents):
                    contents[offset : offset + 1] = [content]
            else:
                del contents[offset:]
        return content


def _rows_of(step: StepInput) -> list[Item]:
    """What the step has of rows, decode ids as items too."""
    decodes = [Item(i, 1, None, TokenSource.LAST_SAMPLED, sample=True) for i in step.decode_ids]
    return [*decodes, *(item for item in step.items if item.row_count)]


class SessionModel:
    """One session."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.base = State()
        self.events: list[Event] = []
        self.epoch = 1
        self.next_step_number = 1
        self.inflight: list[int] = []
        self.inflight_numbers: list[int] = []

    def add(self, event: Event) -> None:
        """Something happened that no failure takes back, or a step was accepted."""
        self.events.append(event)
        self._absorb()

    def _absorb(self) -> None:
        while self.events and not isinstance(self.events[0], StepEvent):
            self.events.pop(0)(self.base)  # type: ignore[operator]

    def planned(self) -> State:
        """After everything accepted."""
        return self._replay(
            lambda state, event: self.machine.run(state, event, set(), settled=False)
        )

    def committed(self) -> State:
        """What GetSession should show: positions as committed, tables as accepted."""
        return self._replay(self.machine.accept)

    def _replay(self, step: Callable[[State, StepEvent], object]) -> State:
        state = self.base.copy()
        for event in self.events:
            if isinstance(event, StepEvent):
                step(state, event)
            else:
                event(state)
        return state

    def head(self) -> StepEvent:
        event = self.events[0]
        assert isinstance(event, StepEvent)
        return event

    def registered_behind(self) -> set[int]:
        """Ids that steps in flight gave to new sequences."""
        steps = [event.step for event in self.events if isinstance(event, StepEvent)]
        return {new.sequence_id for step in steps for new in step.new_sequences}

    def runnable(self, ticket: int) -> list[int]:
        """Sequences, by id, that have rows in this accepted step and have not failed so far; in the
        plan's order.
        """
        state = self.base.copy()
        for event in self.events:
            if not isinstance(event, StepEvent):
                event(state)
            elif event.ticket == ticket:
                self.machine.accept(state, event)
                ids = [*event.step.decode_ids]
                ids += [item.sequence_id for item in event.step.items if item.row_count]
                ids = [i for i in ids if i not in event.dead and not state.sequences[i].failed]
                event.ran = set(ids)
                return ids
            else:
                self.machine.run(state, event, set())
        raise AssertionError("not in flight")

    def expected(self) -> dict[int, Rows]:
        """The rows of the oldest step, if nothing is injected."""
        return self.machine.run(self.base.copy(), self.head(), set())

    def fall(self, failing: set[int]) -> set[int]:
        """Fails who reads, in the oldest step or behind it, what `failing` were to compute from
        there on; answers whose rows in the oldest step come to nothing with it.
        """
        head = self.head()
        while (missed := self._missed(failing)) is not None:
            index, sequence_ids = missed
            for sequence_id in sequence_ids:
                self._since(index, sequence_id).lost.add(sequence_id)
        return set(head.lost)

    def _missed(self, failing: set[int]) -> tuple[int, set[int]] | None:
        """The first event with rows that read what nobody computes, and whose they are."""
        state = self.base.copy()
        for index, event in enumerate(self.events):
            if not isinstance(event, StepEvent):
                event(state)
                continue
            results = self.machine.run(
                state, event, failing if index == 0 else set(), settled=False
            )
            missed = {i for i, rows in results.items() if None in rows.contents}
            if missed:
                return index, missed
        return None

    def _since(self, index: int, sequence_id: int) -> StepEvent:
        """The first step with no reply yet in which the sequence of this step's id exists."""
        found = None
        for event in reversed(self.events[: index + 1]):
            if isinstance(event, StepEvent):
                found = event
                if sequence_id in [new.sequence_id for new in event.step.new_sequences]:
                    break
        assert found is not None
        return found

    def commit(self, failing: set[int]) -> None:
        """The oldest step commits."""
        event = self.head()
        self.machine.run(self.base, event, failing)
        self.events.pop(0)
        self._absorb()

    def discard(self) -> int:
        """No step that is accepted will commit. What any that ran wrote is nobody's.

        Answers how many sequences had to step back for that.
        """
        spoilt: list[tuple[int, int, int]] = []
        planned = self.base.copy()
        for event in self.events:
            if isinstance(event, StepEvent):
                self.machine.run(planned, event, set())
                spoilt += self.machine.overwritten(planned, event)
                self.machine.accept(self.base, event)
            else:
                event(planned)
                event(self.base)
        is_empty = not self.events
        self.events.clear()
        damaged = set()
        for group, block_id, offset in spoilt:
            contents = self.base.blocks.get((group, block_id), [])
            if len(contents) > offset:
                del contents[offset:]
                damaged.add((group, block_id))
        stepped = [self._step_back(each, damaged) for each in self.base.sequences.values()]
        for sequence in () if is_empty else self.base.sequences.values():
            sequence.meant_position = sequence.position
        return sum(stepped)

    def _step_back(self, sequence: Known, damaged: set[tuple[int, int]]) -> bool:
        """A sequence does not stand past what it has lost and still reads."""
        size = self.machine.facts.block_size
        stood = sequence.position
        for group, table in enumerate(sequence.tables):
            for index, block_id in enumerate(table):
                in_reach = (index + 1) * size > self.machine.first_read(group, stood)
                if (group, block_id) in damaged and in_reach:
                    end = index * size + len(self.base.blocks[group, block_id])
                    sequence.position = min(sequence.position, end)
        return sequence.position < stood
