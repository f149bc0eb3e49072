"""What one sequence does in a step of a simulated client: decode, go on with its prompt, verify
drafts, roll back, copy on write, be preempted and resumed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from random import Random

from mlxrt_client.v1 import block_pb2, step_pb2

from mlxrt.core.model import Limits, ModelFacts
from mlxrt.testing.simulation.view import ClientSequence, Composed, Rows

_ROWS_MAX = 6
_DRAFTS_MAX = 4
Free = list[list[int]]
"""By group, leased blocks that no table names."""


class RowComposer:
    """Composes the rows of sequences and makes them true in the client's view.

    Args:
        expected_token: the greedy token after given ones, for drafts that are right.

    Attributes:
        made: how often each thing was done.
        random: of the client.
        length_max: known tokens of a sequence.
        size: positions in a block.
        facts: of the model.
    """

    def __init__(
        self, facts: ModelFacts, limits: Limits, random: Random,
        expected_token: Callable[[Sequence[int]], int],
    ) -> None:  # fmt: skip
        self.made: Counter[str] = Counter()
        self.random = random
        self.facts = facts
        self.size = facts.block_size
        self.length_max = min(facts.max_model_length, limits.max_model_length)
        self._expected_token = expected_token
        self._pending = 0

    # ---- small things ----

    def chance(self, chance: float) -> bool:
        """Whether something of this probability happens."""
        return self.random.random() < chance

    def entries(self, positions: int) -> int:
        """Table entries for so many positions."""
        return -(-positions // self.size)

    def random_tokens(self, count: int) -> list[int]:
        """So many tokens."""
        return self.random.choices(range(self.facts.vocabulary_size), k=count)

    @staticmethod
    def take(free: Free, counts: Sequence[int]) -> Free | None:
        """So many blocks of each group off `free`; None, and nothing taken, where it has fewer."""
        if any(count > len(ids) for count, ids in zip(counts, free, strict=True)):
            return None
        return [[ids.pop(0) for _ in range(count)] for count, ids in zip(counts, free, strict=True)]

    @staticmethod
    def tables(tables: Free) -> list[block_pb2.BlockTable]:
        """Tables as messages, empty ones left out."""
        table = block_pb2.BlockTable
        return [table(group=group, block_ids=ids) for group, ids in enumerate(tables) if ids]

    # ---- what a sequence does next ----

    def advance(
        self, sequence: ClientSequence, composed: Composed, free: Free, named: list[Counter[int]]
    ) -> None:
        """Its next rows, or now and then something else."""
        if sequence.unsettled:
            self._change_unsettled(sequence, composed, free)
            return
        if self.chance(0.03):
            self._preempt(sequence, composed)
            return
        known, start = len(sequence.tokens), sequence.position
        if start >= known:
            start = known - 1
        if known >= self.length_max:
            return
        if start and self.chance(0.05):
            start = self.random.randint(max(0, start - 4), start)
            self.made["roll back"] += 1
        rows = self.random.randint(1, min(known - start, _ROWS_MAX))
        if not self._writable(sequence, start, rows, named):
            self._copy_on_write(sequence, composed, free, start)
            return
        drafts = self._draft_count(known) if start + rows == known and self.chance(0.12) else 0
        if not self._writable(sequence, start, rows + drafts, named):
            drafts = 0
        append = self._grow(sequence, free, start + rows + drafts)
        if append is None and drafts:
            drafts = 0
            append = self._grow(sequence, free, start + rows)
        if append is None:
            if self.chance(0.3):
                self._preempt(sequence, composed)
            return
        plain = not any(append) and rows == 1 and start == sequence.position == known - 1
        if plain and sequence.given and not drafts and self.chance(0.85):
            self._decode(sequence, composed, start)
            return
        self.rows(
            sequence, composed, start, rows,
            append=append, start_given=start != sequence.position, drafts=drafts,
        )  # fmt: skip

    def _decode(self, sequence: ClientSequence, composed: Composed, start: int) -> None:
        self.made["decode"] += 1
        composed.step.decode_sequence_ids.append(sequence.sequence_id)
        if composed.alone:
            composed.starts[sequence.sequence_id] = start
        sequence.position = start + 1
        run = Rows(sequence, start + 1, moves=sequence.moves)
        self._sample(run)
        composed.decodes.append(run)

    def _grow(self, sequence: ClientSequence, free: Free, positions: int) -> Free | None:
        """Blocks appended for so many positions; None where there are too few."""
        wanted = self.entries(positions)
        append = self.take(free, [max(0, wanted - len(table)) for table in sequence.tables])
        for table, ids in zip(sequence.tables, append or (), strict=False):
            table.extend(ids)
        return append

    def _writable(
        self, sequence: ClientSequence, start: int, rows: int, named: list[Counter[int]]
    ) -> bool:
        for group, table in enumerate(sequence.tables):
            for block in table[start // self.size : self.entries(start + rows)]:
                if block == 0 or named[group][block] > 1:
                    return False
        return True

    def _copy_on_write(
        self, sequence: ClientSequence, composed: Composed, free: Free, start: int
    ) -> None:
        """Copies the block that row `start` would write, and puts the copy into the tables."""
        index = start // self.size
        if any(index >= len(table) or table[index] == 0 for table in sequence.tables):
            return
        taken = self.take(free, [1] * len(sequence.tables))
        if taken is None:
            return
        self.made["copy on write"] += 1
        for group, (table, ids) in enumerate(zip(sequence.tables, taken, strict=True)):
            composed.step.block_copies.add(
                group=group, source_block_id=table[index], destination_block_id=ids[0]
            )
            table[index:] = ids
        self.rows(sequence, composed, start, 1, replace=True, start_given=True)

    def _preempt(self, sequence: ClientSequence, composed: Composed) -> None:
        self.made["preempt"] += 1
        sequence.tables = [[] for _ in sequence.tables]
        sequence.position = 0
        sequence.moves += 1
        composed.step.items.add(sequence_id=sequence.sequence_id).replace.SetInParent()
        composed.items.append(None)

    def _change_unsettled(
        self, sequence: ClientSequence, composed: Composed, free: Free
    ) -> None:
        """While drafts are verified a sequence takes no rows; its tables may change."""
        if self.chance(0.1):
            self.made["preempt of drafts"] += 1
            self._preempt(sequence, composed)
        elif self.chance(0.1) and not sequence.preempted:
            positions = (max(map(len, sequence.tables)) + 1) * self.size
            append = self._grow(sequence, free, positions) if positions <= self.length_max else None
            if append is None:
                return
            self.made["append to drafts"] += 1
            item = composed.step.items.add(sequence_id=sequence.sequence_id)
            item.append.tables.extend(self.tables(append))
            composed.items.append(None)

    def resume(
        self, sequence: ClientSequence, composed: Composed, free: Free,
        others: Sequence[ClientSequence],
    ) -> None:  # fmt: skip
        """New tables for one that has none, behind what rows of this step fill if `others` have
        the same beginning."""
        known = len(sequence.tokens)
        if known >= self.length_max:
            return
        donor, shared = self._donor(sequence, composed, others)
        taken = self.take(free, [self.entries(known) - shared] * len(sequence.tables))
        if taken is None:
            return
        self.made["resume"] += 1
        self.made["resume in a step"] += shared > 0
        sequence.tables = taken
        if donor is not None:
            composed.rely_on(donor.sequence_id)
            sequence.tables = [t[:shared] + own for t, own in zip(donor.tables, taken, strict=True)]
        start = shared * self.size
        rows = known - start if self.chance(0.5) else self.random.randint(1, known - start)
        room = self.entries(known) * self.size - known
        drafts = min(room, self._draft_count(known)) if self.chance(0.1) else 0
        self.rows(
            sequence, composed, start, rows,
            replace=True, start_given=True, drafts=drafts if start + rows == known else 0,
        )  # fmt: skip

    def _donor(
        self, sequence: ClientSequence, composed: Composed, others: Sequence[ClientSequence]
    ) -> tuple[ClientSequence | None, int]:
        """Whose blocks of this step begin as the sequence does, and how many of them."""
        for other in others:
            start = composed.starts.get(other.sequence_id)
            if start is None or not all(table and 0 not in table for table in other.tables):
                continue
            most = min(other.position, len(sequence.tokens) - 1)
            shared = most // self.size
            end = shared * self.size
            same = sequence.tokens[:end] == other.tokens[:end]
            if end > start and same and min(other.tokens[:end]) >= 0:
                return other, shared
        return None, 0

    # ---- items with rows ----

    def rows(
        self, sequence: ClientSequence, composed: Composed, start: int, count: int, *,
        append: Free | None = None, replace: bool = False, start_given: bool = False,
        drafts: int = 0,
    ) -> None:  # fmt: skip
        """An item with rows; samples where they reach the last known token, behind `drafts`."""
        item = composed.step.items.add(sequence_id=sequence.sequence_id, row_count=count)
        composed.starts[sequence.sequence_id] = start
        known = len(sequence.tokens)
        if start_given or self.chance(0.2):
            item.start_position = start
        if self.chance(0.08):
            self.made["explicit"] += 1
            tokens = self.random_tokens(count)
            item.explicit.token_ids.extend(tokens)
            sequence.tokens[start:] = tokens
            sequence.given = True
            known = len(sequence.tokens)
        else:
            item.registered.SetInParent()
        if replace:
            item.replace.tables.extend(self.tables(sequence.tables))
            item.replace.SetInParent()
            sequence.moves += 1
        elif append and any(append):
            item.append.tables.extend(self.tables(append))
        self._pierce(sequence, item, start)
        end = sequence.position = start + count
        run = Rows(sequence, end, moves=sequence.moves)
        run.described = self._described(sequence, start, end)
        if end == known and known < self.length_max and (drafts or self.chance(0.97)):
            item.sample = True
            if drafts:
                self.made["drafts"] += drafts
                run.drafts = self._guess(sequence.tokens, drafts)
                item.draft_token_ids.extend(run.drafts)
                sequence.unsettled = True
            self._sample(run)
        composed.items.append(run)
        self.made["item"] += 1

    def _pierce(self, sequence: ClientSequence, item: step_pb2.StepItem, start: int) -> None:
        """Gives back what the windows have left."""
        for group, facts in enumerate(self.facts.groups):
            count = max(0, start - facts.window + 1) // self.size if facts.window else 0
            if count and sequence.tables[group][count - 1] and self.chance(0.4):
                self.made["pierce"] += 1
                item.leading_holes.add(group=group, count=count)
                sequence.tables[group][:count] = [0] * count

    def _sample(self, run: Rows) -> None:
        self._pending -= 1
        run.number = self._pending
        run.sequence.tokens.append(self._pending)
        run.sequence.given = True

    def _described(
        self, sequence: ClientSequence, start: int, end: int
    ) -> tuple[int, int] | None:
        """First position and number of the prompt's tokens that the rows predict."""
        if sequence.prompt_count is None:
            return None
        known = min(sequence.prompt_count, len(sequence.tokens))
        count = max(0, min(end, known - 1) - start) if sequence.prompt_top is not None else 0
        self.made["prompt logprobs"] += count
        return start + 1, count

    # ---- drafts ----

    def _draft_count(self, known: int) -> int:
        return max(0, min(self.random.randint(1, _DRAFTS_MAX), self.length_max - known - 1))

    def _guess(self, tokens: Sequence[int], count: int) -> list[int]:
        """Drafts behind `tokens`, most of them right for a greedy sequence without a mask."""
        known: list[int] = []
        for token in tokens:
            known.append(token if token >= 0 else self._expected_token(known))
        for _ in range(count):
            right = self.chance(0.75)
            known.append(self._expected_token(known) if right else self.random_tokens(1)[0])
        return known[len(tokens) :]
