"""Makes steps as a scheduler would, at random: prefill in chunks, decode, preempt and resume,
share, copy, roll back, pierce, release; now and then one that must be refused."""

from __future__ import annotations

from collections import Counter
from random import Random

from mlxrt_client.v1 import block_pb2, step_pb2

from mlxrt.core.model import Limits, ModelFacts
from mlxrt.testing.simulation.view import ClientSequence, Composed, View

_ROWS_MAX = 6
_PROMPT_MAX = 12


class Composer:
    """Composes steps and makes them true in the client's view.

    Attributes:
        made: how often each thing was done.
    """

    def __init__(self, facts: ModelFacts, limits: Limits, random: Random) -> None:
        self.made: Counter[str] = Counter()
        self._facts = facts
        self._limits = limits
        self._random = random
        self._pending = 0
        self._size = facts.block_size
        self._length_max = min(facts.max_model_length, limits.max_model_length)

    def compose(self, view: View) -> Composed | None:
        """The next step, or None where there is nothing to do."""
        composed = Composed()
        step = composed.step
        self._release(view, step)
        free = view.free()
        sequences = list(view.sequences.values())
        if len(sequences) < self._limits.max_sequences - 1 and self._chance(0.4):
            self._register(view, composed, free)
        self._random.shuffle(sequences)
        named = view.named()
        for sequence in sequences[: self._limits.max_step_sequences - 1]:
            if not sequence.failed and self._chance(0.9):
                self._advance(sequence, composed, free, named)
        if len(view.sequences) < self._limits.max_sequences and self._chance(0.3):
            self._register_behind(view, composed, free)
        if self._chance(0.02):
            self._break(step)
        busy = (
            step.items or step.decode_sequence_ids or step.new_sequences
            or step.release_sequence_ids or step.block_copies
        )  # fmt: skip
        return composed if busy else None

    def _chance(self, chance: float) -> bool:
        return self._random.random() < chance

    def _release(self, view: View, step: step_pb2.StepRequest) -> None:
        for sequence in list(view.sequences.values()):
            done = sequence.failed or len(sequence.tokens) >= sequence.goal
            if (done and self._chance(0.8)) or self._chance(0.01):
                self.made["release"] += 1
                step.release_sequence_ids.append(sequence.sequence_id)
                del view.sequences[sequence.sequence_id]

    def _take(self, free: list[list[int]], counts: list[int]) -> list[list[int]] | None:
        if any(count > len(ids) for count, ids in zip(counts, free, strict=True)):
            return None
        return [[ids.pop(0) for _ in range(count)] for count, ids in zip(counts, free, strict=True)]

    def _entries(self, positions: int) -> int:
        return -(-positions // self._size)

    def _random_tokens(self, most: int) -> list[int]:
        return self._random.choices(
            range(self._facts.vocabulary_size), k=self._random.randint(1, most)
        )

    # ---- registration ----

    def _register(self, view: View, composed: Composed, free: list[list[int]]) -> None:
        groups = len(self._facts.groups)
        donors = [s for s in view.sequences.values() if self._shareable(s)]
        shared, copied, head = 0, 0, []
        donor = self._random.choice(donors) if donors and self._chance(0.5) else None
        if donor is not None:
            most = min(donor.position, len(donor.tokens) - 1)
            while most and min(donor.tokens[:most]) < 0:
                most -= 1
            shared, copied = divmod(self._random.randint(0, most), self._size)
            if self._chance(0.5):
                copied = 0
            head = donor.tokens[: shared * self._size + copied]
        prompt = head + self._random_tokens(_PROMPT_MAX if not head else 4)
        if len(prompt) + 4 > self._length_max:
            return
        fresh = self._take(free, [self._entries(len(prompt)) - shared] * groups)
        if fresh is None:
            return
        self.made["share"] += shared > 0
        self.made["copy"] += copied > 0
        tables = [
            own if donor is None else donor.tables[g][:shared] + own for g, own in enumerate(fresh)
        ]
        if copied and donor is not None:
            for group, own in enumerate(fresh):
                composed.step.block_copies.add(
                    group=group, source_block_id=donor.tables[group][shared],
                    destination_block_id=own[0],
                )  # fmt: skip
        goal = min(len(prompt) + self._random.randint(1, 20), self._length_max - 1)
        sequence = ClientSequence(view.next_id, prompt, tables, goal)
        sequence.position = len(head)
        view.next_id += 1
        view.sequences[sequence.sequence_id] = sequence
        new = composed.step.new_sequences.add(
            sequence_id=sequence.sequence_id, prompt_token_ids=prompt, tables=self._tables(tables)
        )
        if self._chance(0.05):
            new.sampling.temperature = 0.75
            new.sampling.seed = self._random.getrandbits(40)
        self.made["register"] += 1
        if head or self._chance(0.8):
            self._rows(sequence, composed, len(head), len(prompt) - len(head), start_given=True)

    def _register_behind(self, view: View, composed: Composed, free: list[list[int]]) -> None:
        """A sequence that starts behind blocks which rows of this very step fill."""
        donors = [
            (sequence, shared)
            for sequence in view.sequences.values()
            if (start := composed.starts.get(sequence.sequence_id)) is not None
            and (shared := sequence.position // self._size) * self._size > start
            and min(sequence.tokens[: shared * self._size]) >= 0
            and self._shareable(sequence)
        ]
        if not donors:
            return
        donor, shared = self._random.choice(donors)
        prompt = donor.tokens[: shared * self._size] + self._random_tokens(4)
        fresh = self._take(free, [self._entries(len(prompt)) - shared] * len(donor.tables))
        if fresh is None or len(prompt) + 4 > self._length_max:
            return
        self.made["share in a step"] += 1
        tables = [old[:shared] + own for old, own in zip(donor.tables, fresh, strict=True)]
        goal = min(len(prompt) + self._random.randint(1, 20), self._length_max - 1)
        sequence = ClientSequence(view.next_id, prompt, tables, goal)
        view.next_id += 1
        view.sequences[sequence.sequence_id] = sequence
        composed.step.new_sequences.add(
            sequence_id=sequence.sequence_id, prompt_token_ids=prompt, tables=self._tables(tables)
        )
        start = shared * self._size
        self._rows(sequence, composed, start, len(prompt) - start, start_given=True)

    def _shareable(self, sequence: ClientSequence) -> bool:
        return (
            sequence.position > 0
            and not sequence.failed
            and all(table and 0 not in table for table in sequence.tables)
        )

    # ---- rows ----

    def _advance(
        self, sequence: ClientSequence, composed: Composed, free: list[list[int]],
        named: list[Counter[int]],
    ) -> None:  # fmt: skip
        if sequence.preempted:
            self._resume(sequence, composed, free)
            return
        if self._chance(0.03):
            self._preempt(sequence, composed)
            return
        known, start = len(sequence.tokens), sequence.position
        if start >= known:
            start = known - 1
        if known >= self._length_max:
            return
        if start and self._chance(0.05):
            start = self._random.randint(max(0, start - 4), start)
            self.made["roll back"] += 1
        rows = self._random.randint(1, min(known - start, _ROWS_MAX))
        if not self._writable(sequence, start, rows, named):
            self._copy_on_write(sequence, composed, free, start)
            return
        append: list[list[int]] = []
        wanted = self._entries(start + rows)
        missing = [max(0, wanted - len(table)) for table in sequence.tables]
        if any(missing):
            taken = self._take(free, missing)
            if taken is None:
                if self._chance(0.3):
                    self._preempt(sequence, composed)
                return
            append = taken
            for table, ids in zip(sequence.tables, append, strict=True):
                table.extend(ids)
        plain = not append and rows == 1 and start == sequence.position == known - 1
        if plain and sequence.given and self._chance(0.85):
            self.made["decode"] += 1
            composed.step.decode_sequence_ids.append(sequence.sequence_id)
            composed.decodes.append(self._sampled(sequence, known))
            composed.starts[sequence.sequence_id] = start
            sequence.position = known
            return
        self._rows(
            sequence, composed, start, rows, append=append, start_given=start != sequence.position
        )

    def _writable(
        self, sequence: ClientSequence, start: int, rows: int, named: list[Counter[int]]
    ) -> bool:
        for group, table in enumerate(sequence.tables):
            for block in table[start // self._size : self._entries(start + rows)]:
                if block == 0 or named[group][block] > 1:
                    return False
        return True

    def _copy_on_write(
        self, sequence: ClientSequence, composed: Composed, free: list[list[int]], start: int
    ) -> None:
        """Copies the block that row `start` would write, and puts the copy into the tables."""
        index = start // self._size
        if any(index >= len(table) or table[index] == 0 for table in sequence.tables):
            return
        taken = self._take(free, [1] * len(sequence.tables))
        if taken is None:
            return
        self.made["copy on write"] += 1
        for group, (table, ids) in enumerate(zip(sequence.tables, taken, strict=True)):
            composed.step.block_copies.add(
                group=group, source_block_id=table[index], destination_block_id=ids[0]
            )
            table[index:] = ids
        self._rows(sequence, composed, start, 1, replace=True, start_given=True)

    def _preempt(self, sequence: ClientSequence, composed: Composed) -> None:
        self.made["preempt"] += 1
        sequence.tables = [[] for _ in sequence.tables]
        sequence.position = 0
        composed.step.items.add(sequence_id=sequence.sequence_id).replace.SetInParent()
        composed.items.append(None)

    def _resume(self, sequence: ClientSequence, composed: Composed, free: list[list[int]]) -> None:
        known = len(sequence.tokens)
        if known >= self._length_max:
            return
        taken = self._take(free, [self._entries(known)] * len(sequence.tables))
        if taken is None:
            return
        self.made["resume"] += 1
        sequence.tables = taken
        rows = known if self._chance(0.5) else self._random.randint(1, known)
        self._rows(sequence, composed, 0, rows, replace=True, start_given=True)

    def _rows(
        self, sequence: ClientSequence, composed: Composed, start: int, rows: int, *,
        append: list[list[int]] | None = None, replace: bool = False, start_given: bool = False,
    ) -> None:  # fmt: skip
        """An item with rows; samples where they reach the last known token."""
        item = composed.step.items.add(sequence_id=sequence.sequence_id, row_count=rows)
        composed.starts[sequence.sequence_id] = start
        known = len(sequence.tokens)
        if start_given or self._chance(0.2):
            item.start_position = start
        if self._chance(0.08):
            self.made["explicit"] += 1
            tokens = self._random.choices(range(self._facts.vocabulary_size), k=rows)
            item.explicit.token_ids.extend(tokens)
            sequence.tokens[start:] = tokens
            sequence.given = True
            known = len(sequence.tokens)
        else:
            item.registered.SetInParent()
        if replace:
            item.replace.tables.extend(self._tables(sequence.tables))
            item.replace.SetInParent()
        elif append:
            item.append.tables.extend(self._tables(append))
        self._pierce(sequence, item, start)
        sequence.position = start + rows
        slot = None
        if start + rows == known and known < self._length_max and self._chance(0.97):
            item.sample = True
            slot = self._sampled(sequence, known)
        composed.items.append(slot)
        self.made["item"] += 1

    def _pierce(self, sequence: ClientSequence, item: step_pb2.StepItem, start: int) -> None:
        """Gives back what the windows have left."""
        for group, facts in enumerate(self._facts.groups):
            count = max(0, start - facts.window + 1) // self._size if facts.window else 0
            if count and sequence.tables[group][count - 1] and self._chance(0.4):
                self.made["pierce"] += 1
                item.leading_holes.add(group=group, count=count)
                sequence.tables[group][:count] = [0] * count

    def _sampled(self, sequence: ClientSequence, index: int) -> tuple[ClientSequence, int, int]:
        self._pending -= 1
        sequence.tokens.append(self._pending)
        sequence.given = True
        return sequence, index, self._pending

    @staticmethod
    def _tables(tables: list[list[int]]) -> list[block_pb2.BlockTable]:
        table = block_pb2.BlockTable
        return [table(group=group, block_ids=ids) for group, ids in enumerate(tables) if ids]

    def _break(self, step: step_pb2.StepRequest) -> None:
        """Makes the step one that must be refused."""
        self.made["broken"] += 1
        match self._random.randrange(4):
            case 0:
                step.decode_sequence_ids.append(1 << 30)
            case 1:
                step.items.add(sequence_id=1 << 30, row_count=1).registered.SetInParent()
            case 2:
                step.block_copies.add(source_block_id=1, destination_block_id=1 << 20)
            case 3:
                step.new_sequences.add(sequence_id=1 << 30)
