"""What is wrong with a step, said in the plainest way: every reason of the first part that has
any.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from core_model import Known, Machine, State, StepEvent

from mlxrt.core.step import Item, StepInput, TokenSource
from mlxrt.errors import Reason

Ids = dict[int, list[int]]
Slot = tuple[int, int, int]


class Rules:
    """The rules of a step for one model and one limit of sequences."""

    def __init__(self, machine: Machine, max_sequences: int) -> None:
        self.machine = machine
        self.facts = machine.facts
        self.max_sequences = max_sequences

    def problems(self, planned: State, step: StepInput) -> set[Reason]:
        """Empty where the step must be accepted; else one of these is the reason of its refusal."""
        found = self._sequences(planned, step)
        if found:
            return found
        dead = failed_items(planned, step)
        after = planned.copy()
        self.machine.accept(after, StepEvent(0, step, dead))
        return (
            self._copies(after, step)
            or self._twice(step.decode_ids)
            or self._rows(after, step, dead)
        )

    def _sequences(self, planned: State, step: StepInput) -> set[Reason]:
        found: set[Reason] = set()
        there = dict(planned.sequences)
        for sequence_id in step.releases:
            if there.pop(sequence_id, None) is None:
                known = sequence_id in planned.sequences
                found.add(Reason.FIELD_INVALID if known else Reason.SEQUENCE_UNKNOWN)
        if step.new_sequences and len(there) + len(step.new_sequences) > self.max_sequences:
            found.add(Reason.LIMIT_EXCEEDED)
        for new in step.new_sequences:
            if new.sequence_id in there:
                found.add(Reason.SEQUENCE_EXISTS)
            there[new.sequence_id] = Known(
                [list(new.tables.get(g, [])) for g in self.machine.groups], list(new.prompt)
            )
            found |= self._tokens(list(new.prompt)) | self._ids(planned, new.tables)
            if not new.prompt:
                found.add(Reason.FIELD_INVALID)
            if len(new.prompt) > self.facts.max_model_length:
                found.add(Reason.LIMIT_EXCEEDED)
        for item in step.items:
            sequence = there.get(item.sequence_id)
            if sequence is None:
                found.add(Reason.SEQUENCE_UNKNOWN)
            else:
                found |= self._item(planned, sequence, item)
        named = [*set(step.decode_ids), *(item.sequence_id for item in step.items)]
        return found | self._twice(named)

    def _twice(self, sequence_ids: Sequence[int]) -> set[Reason]:
        return {Reason.FIELD_INVALID} if len(set(sequence_ids)) < len(sequence_ids) else set()

    def _item(self, planned: State, sequence: Known, item: Item) -> set[Reason]:
        """Shape of an item and its table change."""
        found: set[Reason] = set()
        changes = item.append is not None or item.replace is not None or item.leading_holes
        if item.row_count == 0:
            extra = item.source or item.sample or item.return_logits or item.draft_tokens
            if not changes or extra or item.start_position is not None:
                found.add(Reason.FIELD_INVALID)
        elif item.source is None:
            found.add(Reason.FIELD_INVALID)
        elif item.source is TokenSource.EXPLICIT:
            found |= self._tokens(list(item.token_ids))
            if len(item.token_ids) != item.row_count:
                found.add(Reason.FIELD_INVALID)
        elif item.source is TokenSource.LAST_SAMPLED and item.row_count != 1:
            found.add(Reason.FIELD_INVALID)
        if item.draft_tokens:
            found |= self._tokens(list(item.draft_tokens))
            if not item.sample or item.return_logits:
                found.add(Reason.FIELD_INVALID)
        if item.append is not None and item.replace is not None:
            found.add(Reason.FIELD_INVALID)
        if found or sequence.failed:
            return found
        for tables in (item.append, item.replace):
            found |= self._ids(planned, tables or {})
        if not found:
            after = sequence.copy()
            self.machine.change_tables(after, Item(0, append=item.append, replace=item.replace))
            for group, count in (item.leading_holes or {}).items():
                if group not in self.machine.groups or count > len(after.tables[group]):
                    found.add(Reason.FIELD_INVALID)
            if max(map(len, after.tables)) > -(
                -self.facts.max_model_length // self.facts.block_size
            ):
                found.add(Reason.LIMIT_EXCEEDED)
        return found

    def _tokens(self, tokens: list[int]) -> set[Reason]:
        wrong = any(token >= self.facts.vocabulary_size for token in tokens)
        return {Reason.FIELD_INVALID} if wrong else set()

    def _ids(self, planned: State, tables: Ids) -> set[Reason]:
        found: set[Reason] = set()
        for group, ids in tables.items():
            if group not in self.machine.groups:
                found.add(Reason.FIELD_INVALID)
                continue
            for block_id in ids:
                if block_id >= self.facts.groups[group].block_count:
                    found.add(Reason.FIELD_INVALID)
                elif block_id and (group, block_id) not in planned.blocks:
                    found.add(Reason.BLOCK_NOT_LEASED)
            if len(ids) > -(-self.facts.max_model_length // self.facts.block_size):
                found.add(Reason.LIMIT_EXCEEDED)
        return found

    def _copies(self, after: State, step: StepInput) -> set[Reason]:
        found: set[Reason] = set()
        names = Counter(after.named())
        destinations: set[tuple[int, int]] = set()
        for group, source, destination in step.copies:
            found |= self._ids(after, {group: [source, destination]})
            if 0 in (source, destination):
                found.add(Reason.BLOCK_NOT_LEASED)
            if (group, destination) in destinations:
                found.add(Reason.SLOT_CONFLICT)
            if names[group, destination] > 1:
                found.add(Reason.BLOCK_SHARED)
            destinations.add((group, destination))
        return found

    def _rows(self, after: State, step: StepInput, dead: set[int]) -> set[Reason]:
        found: set[Reason] = set()
        unwritten = self._unwritten(after, step, dead)
        read = {(g, d): list(after.blocks[g, s]) for g, s, d in step.copies}
        after.blocks.update(read)
        names = Counter(after.named())
        everybody = _everybody(step)
        for index, item in enumerate(everybody):
            if item.sequence_id not in after.sequences:
                found.add(Reason.SEQUENCE_UNKNOWN)
            elif item.sequence_id in dead:
                for group, block_id, offset in unwritten.get(item.sequence_id, []):
                    del after.blocks[group, block_id][offset:]
            elif item.row_count:
                sequence = after.sequences[item.sequence_id]
                behind = [i for i in everybody[index + 1 :] if i.sequence_id not in dead]
                others = names - self._taken(after, step, behind)
                wrong = self._position(sequence, item)
                wrong = wrong or self._slots(after, names, others, sequence, item)
                found |= wrong
                if not wrong:
                    self._fill(after, sequence, item)
        return found

    def unwritten(self, planned: State, step: StepInput, dead: set[int]) -> dict[int, list[Slot]]:
        """By sequence that had failed before, the slots that its rows in the step were to write."""
        after = planned.copy()
        self.machine.accept(after, StepEvent(0, step, dead))
        return self._unwritten(after, step, dead)

    def _unwritten(self, after: State, step: StepInput, dead: set[int]) -> dict[int, list[Slot]]:
        slots: dict[int, list[Slot]] = {}
        names, size = Counter(after.named()), self.facts.block_size
        everybody = _everybody(step)
        for index, item in enumerate(everybody):
            there = item.sequence_id in dead & after.sequences.keys()
            if not there or not item.row_count:
                continue
            sequence = after.sequences[item.sequence_id]
            behind = [i for i in everybody[index + 1 :] if i.sequence_id not in dead]
            others = names - self._taken(after, step, behind)
            start = sequence.meant_position if item.start_position is None else item.start_position
            end = min(start + item.row_count + len(item.draft_tokens), self.facts.max_model_length)
            for group, table in enumerate(sequence.meant_tables or sequence.tables):
                for position in range(max(0, start), end):
                    entry = table[position // size : position // size + 1]
                    own = sequence.tables[group].count(entry[0]) if entry else 0
                    if entry and entry[0] and others[group, entry[0]] == own:
                        slot = group, entry[0], position % size
                        slots.setdefault(item.sequence_id, []).append(slot)
        return slots

    def _taken(self, after: State, step: StepInput, behind: list[Item]) -> Counter[tuple[int, int]]:
        """Table entries that come in this step, of those whose rows stand behind."""
        fresh = {new.sequence_id for new in step.new_sequences}
        taken: Counter[tuple[int, int]] = Counter()
        for item in behind:
            if not item.row_count or item.sequence_id not in after.sequences:
                continue
            for group, table in enumerate(after.sequences[item.sequence_id].tables):
                first = len(table) - len((item.append or {}).get(group, ()))
                if item.sequence_id in fresh or item.replace is not None:
                    first = 0
                taken.update((group, block_id) for block_id in table[first:] if block_id)
        return taken

    def _fill(self, after: State, sequence: Known, item: Item) -> None:
        """The rows are computed for those behind them."""
        start = sequence.position if item.start_position is None else item.start_position
        size = self.facts.block_size
        for group, table in enumerate(sequence.tables):
            for position in range(start, start + item.row_count):
                contents = after.blocks[group, table[position // size]]
                if len(contents) == position % size:
                    contents.append(0)

    def _position(self, sequence: Known, item: Item) -> set[Reason]:
        found: set[Reason] = set()
        if sequence.unsettled:
            return {Reason.POSITION_UNKNOWN}
        known, stands = len(sequence.tokens), sequence.position
        if item.start_position is None and item.replace is not None:
            found.add(Reason.POSITION_INVALID)
        start = stands if item.start_position is None else item.start_position
        if start < 0 or start > max(stands, known - 1):
            found.add(Reason.POSITION_INVALID)
        end = start + item.row_count
        if item.source is TokenSource.LAST_SAMPLED and not (sequence.given and start == known - 1):
            found.add(Reason.POSITION_INVALID)
        if item.source is TokenSource.EXPLICIT:
            known = end
        if end > known or (item.sample and end != known):
            found.add(Reason.POSITION_INVALID)
        longest = max(end, known + item.sample + len(item.draft_tokens))
        if longest > self.facts.max_model_length:
            found.add(Reason.LIMIT_EXCEEDED)
        return found

    def _slots(
        self,
        after: State,
        names: Counter[tuple[int, int]],
        others: Counter[tuple[int, int]],
        sequence: Known,
        item: Item,
    ) -> set[Reason]:
        """`others` are the names that keep rows, but for those of drafts, from writing a block."""
        found: set[Reason] = set()
        start = sequence.position if item.start_position is None else item.start_position
        kept = start + item.row_count
        end = kept + len(item.draft_tokens)
        size = self.facts.block_size
        for group, table in enumerate(sequence.tables):
            for position in range(self.machine.first_read(group, start), end):
                block_id = table[position // size] if position // size < len(table) else None
                if block_id is None:
                    found.add(Reason.TABLE_TOO_SHORT)
                elif block_id == 0:
                    found.add(Reason.BLOCK_HOLE)
                elif (
                    position >= start
                    and (others if position < kept else names)[group, block_id] > 1
                ):
                    found.add(Reason.BLOCK_SHARED)
                elif position < start and position % size >= len(after.blocks[group, block_id]):
                    found.add(Reason.BLOCK_UNFILLED)
        return found


def _everybody(step: StepInput) -> list[Item]:
    """The decode ids as items, then the items."""
    decodes = [Item(i, 1, None, TokenSource.LAST_SAMPLED, sample=True) for i in step.decode_ids]
    return [*decodes, *step.items]


def failed_items(planned: State, step: StepInput) -> set[int]:
    """Sequences of the step that have failed: the step does nothing with them."""
    fresh = {new.sequence_id for new in step.new_sequences}
    return {
        sequence_id
        for sequence_id, sequence in planned.sequences.items()
        if sequence.failed and sequence_id not in fresh
    }
