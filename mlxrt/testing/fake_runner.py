"""Runs plans on the fake model: keeps what an engine must of each sequence, applies updates,
writes, reads, samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mlxrt.core.sampling import GREEDY, Sampling
from mlxrt.core.step import Entry, SampledRow, StepOutcome, StepPlan, TokenSource
from mlxrt.core.verification import verify
from mlxrt.errors import MlxrtError, Reason
from mlxrt.testing.fake_model import FakeModel
from mlxrt.testing.fake_sampling import sample_row

_FIRST_CAPACITY = 64


class FakeRunner:
    """The sequences' tokens and tables, one line each: S lines, grown by doubling.

    Args:
        model: the pools and the hash.
        nan_prompt_tokens: FakeFaults.nan_prompt_tokens, read at each registration.
    """

    def __init__(self, model: FakeModel, nan_prompt_tokens: set[int]) -> None:
        self._model = model
        self._nan_prompt_tokens = nan_prompt_tokens
        self._entries = -(-model.max_model_length // model.block_size)
        self._line: dict[int, int] = {}
        self._free = list(range(_FIRST_CAPACITY - 1, -1, -1))
        # One token more than positions: the last sampled token of a full sequence takes no slot.
        self._tokens = np.zeros((_FIRST_CAPACITY, model.max_model_length + 1), np.int64)
        self._tables = [np.zeros((_FIRST_CAPACITY, self._entries), np.int32) for _ in model.windows]
        self._prompt_length: dict[int, int] = {}
        self._rules: dict[int, tuple[Sampling, int]] = {}
        """By handle, for sequences that are not plainly greedy: rules and seed."""
        self._cursed: set[int] = set()

    def run(self, plan: StepPlan, failing: bool) -> StepOutcome:
        """Applies the plan and answers it; with `failing` its forward fails and writes nothing."""
        self._apply(plan)
        outcome = StepOutcome(plan.ticket)
        if plan.cancelled:
            outcome.failure = MlxrtError(
                Reason.PREDECESSOR_FAILED, "a step accepted before this one failed"
            )
            return outcome
        if failing:
            outcome.failure = MlxrtError(Reason.EXECUTION_FAILED, "the fake forward failed")
            return outcome
        if plan.copies:
            self._model.copy_blocks(plan.copies)
        handles = plan.decode_handles
        lines = starts = _EMPTY
        if handles:
            lines = np.array([self._line[h] for h in handles])
            starts = np.array(plan.decode_starts)
            self._write(lines, starts, self._tokens[lines, starts])
        for entry in plan.entries:
            self._write_entry(entry)
        if handles:
            self._decode(plan, lines, starts, outcome)
        outcome.entry_rows = [self._sample_entry(entry) for entry in plan.entries]
        outcome.bucket_row_count = len(handles) + sum(
            entry.count + len(entry.draft_tokens) for entry in plan.entries
        )
        return outcome

    def _apply(self, plan: StepPlan) -> None:
        for handle in plan.retired:
            self._free.append(self._line.pop(handle))
            self._prompt_length.pop(handle)
            self._rules.pop(handle, None)
            self._cursed.discard(handle)
        for registration in plan.registrations:
            if not self._free:
                self._grow()
            handle, line = registration.handle, self._free.pop()
            self._line[handle] = line
            prompt = registration.prompt
            self._tokens[line, : len(prompt)] = prompt
            self._prompt_length[handle] = len(prompt)
            for table in self._tables:
                table[line] = 0
            if registration.sampling != GREEDY:
                self._rules[handle] = (registration.sampling, registration.seed)
            if self._nan_prompt_tokens and not self._nan_prompt_tokens.isdisjoint(prompt):
                self._cursed.add(handle)
        for update in plan.table_updates:
            table_line = self._tables[update.group][self._line[update.handle]]
            end = update.first_index + len(update.block_ids)
            table_line[update.first_index : end] = update.block_ids
            table_line[update.length :] = 0

    def _grow(self) -> None:
        old = len(self._tokens)
        self._free = list(range(2 * old - 1, old - 1, -1))
        self._tokens = np.concatenate([self._tokens, np.zeros_like(self._tokens)])
        self._tables = [np.concatenate([t, np.zeros_like(t)]) for t in self._tables]

    def _write(
        self, lines: npt.NDArray[Any] | int, positions: npt.NDArray[Any], tokens: npt.NDArray[Any]
    ) -> None:
        indexes, offsets = np.divmod(positions, self._model.block_size)
        for group, table in enumerate(self._tables):
            self._model.write(group, table[lines, indexes], offsets, tokens)

    def _write_entry(self, entry: Entry) -> None:
        if entry.count == 0:
            return
        line, end = self._line[entry.handle], entry.start + entry.count
        if entry.source is TokenSource.EXPLICIT:
            self._tokens[line, entry.start : end] = entry.token_ids
        if entry.draft_tokens:
            drafts_end = end + len(entry.draft_tokens)
            self._tokens[line, end:drafts_end] = entry.draft_tokens
            end = drafts_end
        self._write(line, np.arange(entry.start, end), self._tokens[line, entry.start : end])

    def _decode(
        self,
        plan: StepPlan,
        lines: npt.NDArray[Any],
        starts: npt.NDArray[Any],
        outcome: StepOutcome,
    ) -> None:
        lengths = starts + 1
        entries = -(-int(lengths.max()) // self._model.block_size)
        tables = [table[:, :entries].take(lines, axis=0) for table in self._tables]
        tokens, poisoned = self._model.next_tokens(tables, lengths)
        chosen: list[int] = tokens.tolist()
        if self._rules or self._cursed or poisoned.any():
            for index, handle in enumerate(plan.decode_handles):
                if handle in self._rules or handle in self._cursed or poisoned[index]:
                    row = self._row(
                        handle, int(starts[index]) + 1, chosen[index], bool(poisoned[index])
                    )
                    outcome.decode_details[index] = row
                    if row.token is not None:
                        chosen[index] = row.token
            tokens = np.array(chosen)
        self._tokens[lines, lengths] = tokens
        outcome.decode_tokens = chosen

    def _sample_entry(self, entry: Entry) -> SampledRow:
        if entry.count == 0 or not (entry.sample or entry.return_logits):
            return SampledRow()
        line, length = self._line[entry.handle], entry.start + entry.count
        count = 1 + len(entry.draft_tokens)
        tables = [np.repeat(table[line : line + 1], count, axis=0) for table in self._tables]
        tokens, poisoned = self._model.next_tokens(tables, np.arange(length, length + count))
        rows = [
            self._row(entry.handle, length + i, int(tokens[i]), bool(poisoned[i]))
            for i in range(count)
        ]
        row = verify(entry.draft_tokens, rows)
        if row.failure is not None:
            return row
        if entry.return_logits:
            row.logits = self._model.logits(int(tokens[0])).astype("<f4").tobytes()
        if not entry.sample:
            return SampledRow(logits=row.logits)
        assert row.token is not None
        # The tokens of accepted drafts stand there already.
        self._tokens[line, length + len(row.accepted)] = row.token
        return row

    def _row(self, handle: int, length: int, greedy: int, poisoned: bool) -> SampledRow:
        """The row after `length` tokens of the sequence, whose greedy token is `greedy`."""
        if poisoned or handle in self._cursed:
            failure = MlxrtError(
                Reason.NON_FINITE_LOGITS, "the model gave NaN logits for this sequence"
            )
            return SampledRow(failure=failure)
        if handle not in self._rules:
            return SampledRow(token=greedy)
        rules, seed = self._rules[handle]
        known: Sequence[int] = self._tokens[self._line[handle], :length].tolist()
        prompt_length = min(self._prompt_length[handle], length)
        return sample_row(
            self._model.logits(greedy), rules, seed, known[:prompt_length], known[prompt_length:]
        )


_EMPTY: npt.NDArray[Any] = np.zeros(0, np.int64)
