"""An engine whose slots say where they came from.

The content of a slot is a hash over the row's token, its position and every content that the row
read, so one wrong read anywhere upstream changes everything after it. What was never written, or
was spoilt, is None.
"""

from __future__ import annotations

from random import Random

from mlxrt.core.model import ModelFacts
from mlxrt.core.step import Entry, Phase, SampledRow, StepOutcome, StepPlan, TokenSource
from mlxrt.core.verification import verify
from mlxrt.errors import MlxrtError, Reason

Content = int | None


def row_content(token: int, position: int, read: list[Content]) -> Content:
    """What a row leaves in its slots; None spreads."""
    if None in read:
        return None
    return hash((token, position, tuple(read)))


def sampled_token(content: Content, vocabulary_size: int) -> int:
    """The token that a row with this content samples."""
    assert content is not None
    return content % vocabulary_size


class ProvenanceEngine:
    """Runs plans over a memory of its own, which it knows through the plans alone."""

    def __init__(self, facts: ModelFacts) -> None:
        self.facts = facts
        self.tokens: dict[int, dict[int, int]] = {}
        self.tables: dict[int, list[list[int]]] = {}
        self.memory: dict[tuple[int, int, int], Content] = {}
        self.retired: set[int] = set()
        self.contents: dict[int, dict[int, list[Content]]] = {}
        self.rows_run = 0
        self.held: dict[int, StepOutcome] = {}

    def run(self, plan: StepPlan, random: Random, failing: set[int], *, fail: bool) -> StepOutcome:
        """Runs a plan; `failing` handles fail alone, `fail` fails the whole after any part of it
        may have happened.
        """
        self._apply(plan)
        if plan.phase is Phase.SAMPLING:
            return self._sample(plan, fail=fail)
        self.contents[plan.ticket] = {}
        if plan.cancelled:
            assert not (plan.copies or plan.decode_handles or plan.entries)
            return StepOutcome(plan.ticket)
        if fail:
            self._half_run(plan, random)
            return StepOutcome(plan.ticket, failure=MlxrtError(Reason.EXECUTION_FAILED, "injected"))
        self._copy(plan)
        outcome = StepOutcome(plan.ticket, decode_tokens=[])
        for index, handle in enumerate(plan.decode_handles):
            entry = Entry(
                handle, plan.decode_starts[index], 1, TokenSource.LAST_SAMPLED, sample=True
            )
            row = self._run_entry(plan.ticket, entry, failing)
            outcome.decode_tokens.append(row.token or 0)  # type: ignore[union-attr, attr-defined]
            if row.failure is not None:
                outcome.decode_details[index] = row
        outcome.entry_rows = [self._run_entry(plan.ticket, e, failing) for e in plan.entries]
        if plan.phase is Phase.FORWARD:
            self.held[plan.ticket] = outcome
            return StepOutcome(plan.ticket)
        return outcome

    def _sample(self, plan: StepPlan, *, fail: bool) -> StepOutcome:
        """What the forward of the same ticket gave, once."""
        held = self.held.pop(plan.ticket, None)
        if plan.cancelled:
            return StepOutcome(plan.ticket)
        if fail or held is None:
            return StepOutcome(plan.ticket, failure=MlxrtError(Reason.EXECUTION_FAILED, "injected"))
        return held

    def _apply(self, plan: StepPlan) -> None:
        for handle in plan.retired:
            self.tokens.pop(handle, None)
            self.tables.pop(handle, None)
            self.retired.add(handle)
        for new in plan.registrations:
            assert new.handle not in self.tokens, "registered twice"
            assert new.handle not in self.retired, "a retired handle came back"
            self.tokens[new.handle] = dict(enumerate(new.prompt))
            self.tables[new.handle] = [[] for _ in self.facts.groups]
        for update in plan.table_updates:
            table = self.tables[update.handle][update.group]
            assert update.first_index <= len(table)
            end = update.first_index + len(update.block_ids)
            table[update.first_index : end] = update.block_ids
            del table[update.length :]
            assert len(table) == update.length

    def _copy(self, plan: StepPlan) -> None:
        size = self.facts.block_size
        read = [
            [self.memory.get((group, source, offset)) for offset in range(size)]
            for group, source, _ in plan.copies
        ]
        for (group, _, destination), contents in zip(plan.copies, read, strict=True):
            for offset, content in enumerate(contents):
                self.memory[group, destination, offset] = content

    def _half_run(self, plan: StepPlan, random: Random) -> None:
        """What a failed forward may leave: copies made or not, rows written with anything, tokens
        in any state.
        """
        if random.random() < 0.5:
            self._copy(plan)
        named = [(h, s, 1) for h, s in zip(plan.decode_handles, plan.decode_starts, strict=True)]
        named += [
            (entry.handle, entry.start, entry.count + len(entry.draft_tokens))
            for entry in plan.entries
        ]
        for handle, start, count in named:
            for position in range(start, start + count):
                if random.random() < 0.7:
                    self._write(handle, position, None)
                self.tokens[handle][position] = random.randrange(self.facts.vocabulary_size)

    def _run_entry(self, ticket: int, entry: Entry, failing: set[int]) -> SampledRow:
        tokens = self.tokens[entry.handle]
        if entry.source is TokenSource.EXPLICIT:
            for position in [p for p in tokens if p >= entry.start]:
                del tokens[position]
            tokens.update(enumerate(entry.token_ids, entry.start))
        end = entry.start + entry.count
        tokens.update(enumerate(entry.draft_tokens, end))
        contents: list[Content] = []
        for position in range(entry.start, end + len(entry.draft_tokens)):
            # A plan behind one that failed may name a token that was never sampled; nobody hears of
            # its rows.
            content = None
            if position in tokens and entry.handle not in failing:
                read = self._read(entry.handle, position)
                content = row_content(tokens[position], position, read)
            self._write(entry.handle, position, content)
            contents.append(content)
            self.rows_run += 1
        drafts = entry.draft_tokens
        rows = [self._row_of(contents[: entry.count + i]) for i in range(1 + len(drafts))]
        row = verify(drafts, rows)
        kept = end + len(row.accepted)
        self.contents[ticket][entry.handle] = contents[: kept - entry.start]
        for position in range(kept, end + len(entry.draft_tokens)):
            del tokens[position]
        if row.failure is not None or not entry.sample:
            return SampledRow(failure=row.failure)
        assert row.token is not None
        tokens[kept] = row.token
        return row

    def _row_of(self, contents: list[Content]) -> SampledRow:
        """What is sampled after these rows."""
        if None in contents:
            return SampledRow(failure=MlxrtError(Reason.NON_FINITE_LOGITS, "not a number"))
        return SampledRow(token=sampled_token(contents[-1], self.facts.vocabulary_size))

    def _slot(self, handle: int, group: int, position: int) -> tuple[int, int, int]:
        index, offset = divmod(position, self.facts.block_size)
        block_id = self.tables[handle][group][index]
        assert 0 < block_id < self.facts.groups[group].block_count
        return group, block_id, offset

    def _read(self, handle: int, position: int) -> list[Content]:
        read: list[Content] = []
        for group, facts in enumerate(self.facts.groups):
            first = max(0, position - facts.window + 1) if facts.window else 0
            read += [self.memory.get(self._slot(handle, group, p)) for p in range(first, position)]
        return read

    def _write(self, handle: int, position: int, content: Content) -> None:
        for group in range(len(self.facts.groups)):
            self.memory[self._slot(handle, group, position)] = content
