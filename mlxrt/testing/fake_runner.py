"""Runs plans on the fake model: keeps what an engine must of each sequence, applies updates,
writes, reads, samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from mlxrt.core.sampling import GREEDY, Sampling
from mlxrt.core.step import (
    Entry,
    Phase,
    PromptLogprobs,
    SampledRow,
    StepOutcome,
    StepPlan,
    TokenSource,
)
from mlxrt.core.verification import verify
from mlxrt.errors import MlxrtError, Reason
from mlxrt.testing.fake_model import FakeModel
from mlxrt.testing.fake_sampling import describe_token, sample_row

_FIRST_CAPACITY = 64
_EMPTY: npt.NDArray[Any] = np.zeros(0, np.int64)
_Rows = tuple[npt.NDArray[Any], npt.NDArray[Any]]


@dataclass(slots=True)
class _Read:
    """What the rows of a forward read: greedy tokens, and whether a slot held NaN.

    Attributes:
        lines, lengths, tokens, poisoned: by decode handle; the lengths are those after the row.
        entries: tokens and poisoned by entry, one for each row that is sampled.
        prompts: by entry, logprobs of the prompt; None without any, a failure where a slot was NaN.
    """

    lines: npt.NDArray[Any] = field(default_factory=lambda: _EMPTY)
    lengths: npt.NDArray[Any] = field(default_factory=lambda: _EMPTY)
    tokens: npt.NDArray[Any] = field(default_factory=lambda: _EMPTY)
    poisoned: npt.NDArray[Any] = field(default_factory=lambda: _EMPTY)
    entries: list[_Rows] = field(default_factory=list)
    prompts: list[PromptLogprobs | MlxrtError | None] = field(default_factory=list)


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
        self._held: dict[int, tuple[StepPlan, _Read]] = {}
        """By ticket, forwards whose sampling is deferred."""

    def run(self, plan: StepPlan, failing: bool) -> StepOutcome:
        """Applies the plan and answers it; with `failing` its forward or its sampling fails."""
        self._apply(plan)
        held = self._held.pop(plan.ticket, None) if plan.phase is Phase.SAMPLING else None
        if plan.cancelled or (plan.phase is Phase.SAMPLING and held is None):
            return _failed(plan, Reason.PREDECESSOR_FAILED, "a step before this one failed")
        if failing:
            return _failed(plan, Reason.EXECUTION_FAILED, "the fake forward failed")
        if held is not None:
            forward, read = held
            return self._sample(forward, read, plan.masks)
        read = self._forward(plan)
        if plan.phase is Phase.FORWARD:
            self._held[plan.ticket] = plan, read
            return StepOutcome(plan.ticket, bucket_row_count=_row_count(plan))
        return self._sample(plan, read, plan.masks)

    def _forward(self, plan: StepPlan) -> _Read:
        """Copies, writes all rows, then reads those that sample."""
        if plan.copies:
            self._model.copy_blocks(plan.copies)
        handles = plan.decode_handles
        read = _Read()
        if handles:
            read.lines = np.array([self._line[h] for h in handles])
            starts = np.array(plan.decode_starts)
            self._write(read.lines, starts, self._tokens[read.lines, starts])
        for entry in plan.entries:
            self._write_entry(entry)
        if handles:
            read.lengths = starts + 1
            entries = -(-int(read.lengths.max()) // self._model.block_size)
            tables = [table[:, :entries].take(read.lines, axis=0) for table in self._tables]
            read.tokens, read.poisoned = self._model.next_tokens(tables, read.lengths)
        read.entries = [self._read_entry(entry) for entry in plan.entries]
        read.prompts = [self._describe(entry) for entry in plan.entries]
        return read

    def _sample(self, plan: StepPlan, read: _Read, masks: Mapping[int, bytes]) -> StepOutcome:
        """What the rows of `plan` give, of what its forward read."""
        outcome = StepOutcome(plan.ticket, bucket_row_count=_row_count(plan))
        allowed = {handle: self._allowed(data) for handle, data in masks.items()}
        if plan.decode_handles:
            self._decode(plan, read, allowed, outcome)
        outcome.entry_rows = [
            self._sample_entry(entry, *rows, allowed.get(entry.handle))
            for entry, rows in zip(plan.entries, read.entries, strict=True)
        ]
        for row, prompt in zip(outcome.entry_rows, read.prompts, strict=True):
            if isinstance(prompt, MlxrtError):
                row.failure = row.failure or prompt
            elif row.failure is None:
                row.prompt = prompt
        return outcome

    def _allowed(self, data: bytes) -> npt.NDArray[np.bool_]:
        """[rows, vocabulary_size]: a mask as booleans."""
        size = self._model.vocabulary_size
        octets = np.frombuffer(data, np.uint8).reshape(-1, 4 * -(-size // 32))
        return np.unpackbits(octets, axis=1, bitorder="little")[:, :size].astype(np.bool_)

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
            self._prompt_length[handle] = len(prompt) - registration.generated_count
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
            left = min(self._prompt_length[entry.handle], entry.start)
            self._prompt_length[entry.handle] = left
        if entry.draft_tokens:
            drafts_end = end + len(entry.draft_tokens)
            self._tokens[line, end:drafts_end] = entry.draft_tokens
            end = drafts_end
        self._write(line, np.arange(entry.start, end), self._tokens[line, entry.start : end])

    def _decode(
        self,
        plan: StepPlan,
        read: _Read,
        allowed: Mapping[int, npt.NDArray[np.bool_]],
        outcome: StepOutcome,
    ) -> None:
        chosen: list[int] = read.tokens.tolist()
        if self._rules or self._cursed or allowed or read.poisoned.any():
            for index, handle in enumerate(plan.decode_handles):
                mask = allowed.get(handle)
                special = handle in self._rules or handle in self._cursed or mask is not None
                if special or read.poisoned[index]:
                    row = self._row(
                        handle,
                        int(read.lengths[index]),
                        chosen[index],
                        bool(read.poisoned[index]),
                        None if mask is None else mask[0],
                    )
                    outcome.decode_details[index] = row
                    if row.token is not None:
                        chosen[index] = row.token
        self._tokens[read.lines, read.lengths] = chosen
        outcome.decode_tokens = chosen

    def _read_entry(self, entry: Entry) -> _Rows:
        """Greedy tokens, and whether a slot that was read is NaN, of the rows that sample or
        return logits.
        """
        if entry.count == 0 or not (entry.sample or entry.return_logits):
            return _EMPTY, _EMPTY
        line, length = self._line[entry.handle], entry.start + entry.count
        count = 1 + len(entry.draft_tokens)
        tables = [np.repeat(table[line : line + 1], count, axis=0) for table in self._tables]
        return self._model.next_tokens(tables, np.arange(length, length + count))

    def _describe(self, entry: Entry) -> PromptLogprobs | MlxrtError | None:
        """Logprobs of the prompt tokens behind the first rows."""
        if not entry.prompt_rows:
            return None
        line, first = self._line[entry.handle], entry.start + 1
        lengths = np.arange(first, first + entry.prompt_rows)
        tables = [np.repeat(t[line : line + 1], len(lengths), axis=0) for t in self._tables]
        greedy, poisoned = self._model.next_tokens(tables, lengths)
        if poisoned.any() or entry.handle in self._cursed:
            return _not_finite()
        top_count = min(entry.prompt_top, self._model.vocabulary_size)
        answer = PromptLogprobs(first, [], [], top_count, [], [])
        for position, token in zip(lengths.tolist(), greedy.tolist(), strict=True):
            logprob, rank, top = describe_token(
                self._model.logits(token), int(self._tokens[line, position]), top_count
            )
            answer.logprobs.append(logprob)
            answer.ranks.append(rank)
            answer.top_ids += [token_id for token_id, _ in top]
            answer.top_logprobs += [value for _, value in top]
        return answer

    def _sample_entry(
        self,
        entry: Entry,
        tokens: npt.NDArray[Any],
        poisoned: npt.NDArray[Any],
        allowed: npt.NDArray[np.bool_] | None,
    ) -> SampledRow:
        if not len(tokens):
            return SampledRow()
        line, length = self._line[entry.handle], entry.start + entry.count
        masks = [None] * len(tokens) if allowed is None else list(allowed)
        rows = [
            self._row(entry.handle, length + i, int(tokens[i]), bool(poisoned[i]), masks[i])
            for i in range(len(tokens))
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

    def _row(
        self,
        handle: int,
        length: int,
        greedy: int,
        poisoned: bool,
        allowed: npt.NDArray[np.bool_] | None,
    ) -> SampledRow:
        """The row after `length` tokens of the sequence, whose greedy token is `greedy`."""
        if poisoned or handle in self._cursed:
            return SampledRow(failure=_not_finite())
        if allowed is not None and not allowed.any():
            failure = MlxrtError(Reason.MASK_EMPTY, "the mask of this sequence allows no token")
            return SampledRow(failure=failure)
        if handle not in self._rules and allowed is None:
            return SampledRow(token=greedy)
        rules, seed = self._rules.get(handle, (GREEDY, 0))
        known: Sequence[int] = self._tokens[self._line[handle], :length].tolist()
        prompt_length = self._prompt_length[handle]
        prompt, generated = known[:prompt_length], known[prompt_length:]
        return sample_row(self._model.logits(greedy), rules, seed, prompt, generated, allowed)


def _not_finite() -> MlxrtError:
    return MlxrtError(Reason.NON_FINITE_LOGITS, "the model gave NaN logits for this sequence")


def _row_count(plan: StepPlan) -> int:
    rows = sum(entry.count + len(entry.draft_tokens) for entry in plan.entries)
    return len(plan.decode_handles) + rows


def _failed(plan: StepPlan, reason: Reason, message: str) -> StepOutcome:
    return StepOutcome(plan.ticket, failure=MlxrtError(reason, message))
