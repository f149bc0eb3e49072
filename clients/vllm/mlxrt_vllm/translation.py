"""vLLM's SchedulerOutput as steps of mlxrt.v1.

A SchedulerOutput becomes one step. Its requests stand in vLLM's order, in which one that starts
behind a prefix comes after the one that computes it, perhaps in the very same step.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mlxrt_client import v1

from mlxrt_vllm.sampling import sampling_params
from mlxrt_vllm.sequences import Pool, PromptLogprobs, Sequence, Window

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import CachedRequestData, NewRequestData, SchedulerOutput


@dataclass(slots=True)
class Entry:
    """What one request does in a SchedulerOutput, and where its answer stands.

    Attributes:
        column: its index among the step's decode ids; None where it is an item.
        item: its index among the step's items; None where it is in the column.
        drafts: tokens to verify.
    """

    sequence: Sequence
    start: int
    row_count: int
    sample: bool
    drafts: list[int]
    fresh: bool = False
    registration: v1.NewSequence | None = None
    replaced: list[list[int]] | None = None
    appended: list[list[int]] | None = None
    holes: dict[int, int] = field(default_factory=dict)
    column: int | None = None
    item: int | None = None

    @property
    def end(self) -> int:
        """Position behind its last row."""
        return self.start + self.row_count


@dataclass(slots=True)
class Plan:
    """The step of one SchedulerOutput and what each of its requests does in it.

    Attributes:
        entries: in vLLM's order.
    """

    entries: list[Entry]
    step: v1.StepRequest


@dataclass(slots=True)
class Counts:
    """What was sent, for tests and for the log at the end.

    Attributes:
        prefix_rows: positions behind which requests started.
        same_step_prefixes: requests that started behind what others computed in the same step.
    """

    steps: int = 0
    mixed_steps: int = 0
    prefilled_rows: int = 0
    prefix_rows: int = 0
    same_step_prefixes: int = 0
    preemptions: int = 0
    resumptions: int = 0
    drafts: int = 0
    accepted_drafts: int = 0
    masks: int = 0
    holes: int = 0


class Translator:
    """Keeps the sequences and turns each SchedulerOutput into a step.

    One thread, vLLM's engine's. A SchedulerOutput is translated once; steps are sent in order.
    """

    def __init__(
        self, pool: Pool, windows: list[Window], logprobs_mode: str, *, counts: Counts
    ) -> None:
        """No sequences yet; `windows` by group."""
        self.sequences: dict[str, Sequence] = {}
        self.counts = counts
        self._pool = pool
        self._windows = windows
        self._block_size = windows[0].block_size
        self._logprobs_mode = logprobs_mode
        self._numbers = itertools.count(1)
        self._releases: list[int] = []
        self._preempted: dict[str, Sequence] = {}

    def translate(self, output: SchedulerOutput) -> Plan | None:
        """Returns the step; None where nothing has rows: the rest waits for the next one."""
        self._forget(output)
        entries = self._entries(output)
        if not entries:
            return None
        step = v1.StepRequest(defer_sampling=output.has_structured_output_requests)
        step.release_sequence_ids.extend(self._releases)
        for sequence in self._preempted.values():
            step.items.add(sequence_id=sequence.number, replace=v1.ReplaceTables())
        self._releases, self._preempted = [], {}
        for entry in entries:
            self._place(entry, step)
        for copy in output.kv_cache_block_copies or ():
            self._copy(copy.src_block_id, copy.dst_block_id, step)
        self._count(entries)
        return Plan(entries, step)

    def _forget(self, output: SchedulerOutput) -> None:
        """Queues what has ended, or lost its blocks, since the last steps."""
        for request_id in output.finished_req_ids:
            sequence = self.sequences.pop(request_id, None)
            if sequence is not None:
                self._preempted.pop(request_id, None)
                self._releases.append(sequence.number)
        for request_id in output.preempted_req_ids or ():
            sequence = self.sequences.get(request_id)
            if sequence is not None:
                sequence.tables = [[] for _ in sequence.tables]
                sequence.position = 0
                self._preempted[request_id] = sequence
                self.counts.preemptions += 1

    def _entries(self, output: SchedulerOutput) -> list[Entry]:
        by_id = {entry.sequence.request_id: entry for entry in self._all(output)}
        return [by_id[request_id] for request_id in output.num_scheduled_tokens]

    def _all(self, output: SchedulerOutput) -> Iterator[Entry]:
        for new in output.scheduled_new_reqs:
            yield self._new_entry(new, output)
        cached = output.scheduled_cached_reqs
        for index in range(len(cached.req_ids)):
            yield self._cached_entry(cached, index, output)

    def _new_entry(self, new: NewRequestData, output: SchedulerOutput) -> Entry:
        params = new.sampling_params
        prompt = new.prompt_token_ids
        assert params is not None and prompt is not None  # refused at start, or by the platform
        sequence = Sequence(
            request_id=new.req_id,
            number=next(self._numbers),
            tokens=list(prompt),
            known=len(prompt),
            tables=[list(ids) for ids in new.block_ids],
            holes=[0] * len(new.block_ids),
            top_logprobs=params.logprobs,
            prompt_length=len(prompt),
        )
        if params.prompt_logprobs is not None and len(prompt) > 1:
            sequence.prompt_logprobs = PromptLogprobs(prompt, params.prompt_logprobs)
        self.sequences[new.req_id] = sequence
        entry = self._entry(sequence, new.num_computed_tokens, output)
        entry.fresh = True
        entry.registration = v1.NewSequence(
            sequence_id=sequence.number,
            prompt_token_ids=prompt,
            tables=self._pool.tables(sequence.tables),
            sampling=sampling_params(params, self._logprobs_mode),
            prompt_top_logprobs=params.prompt_logprobs,
        )
        return entry

    def _cached_entry(
        self, cached: CachedRequestData, index: int, output: SchedulerOutput
    ) -> Entry:
        request_id = cached.req_ids[index]
        sequence = self.sequences[request_id]
        blocks = cached.new_block_ids[index]
        if request_id in cached.resumed_req_ids:
            self._preempted.pop(request_id, None)
            self._resume(sequence, cached.all_token_ids[request_id], blocks or ())
            entry = self._entry(sequence, cached.num_computed_tokens[index], output)
            entry.fresh, entry.replaced = True, sequence.tables
            self.counts.resumptions += 1
            return entry
        entry = self._entry(sequence, cached.num_computed_tokens[index], output)
        if blocks is not None and any(blocks):
            entry.appended = [list(ids) for ids in blocks]
            for table, ids in zip(sequence.tables, blocks, strict=True):
                table.extend(ids)
        self._pierce(entry)
        return entry

    @staticmethod
    def _resume(sequence: Sequence, tokens: list[int], blocks: tuple[list[int], ...]) -> None:
        sequence.tables = [list(ids) for ids in blocks]
        sequence.holes = [0] * len(sequence.tables)
        if len(tokens) != sequence.known:
            # vLLM dropped what a step in flight had sampled (a reset of its prefix cache does).
            sequence.explicit = True
            sequence.known = len(tokens)
        sequence.tokens = list(tokens)

    def _entry(self, sequence: Sequence, start: int, output: SchedulerOutput) -> Entry:
        """An entry without changes to tables; the sequence then stands behind it."""
        request_id = sequence.request_id
        drafts = list(output.scheduled_spec_decode_tokens.get(request_id, ()))
        row_count = output.num_scheduled_tokens[request_id] - len(drafts)
        end = start + row_count
        return Entry(sequence, start, row_count, end == sequence.known, drafts)

    def _pierce(self, entry: Entry) -> None:
        """Makes holes of what has left a window: vLLM takes such blocks back without a word."""
        sequence = entry.sequence
        for group, window in enumerate(self._windows):
            holes = min(window.holes(entry.start), len(sequence.tables[group]))
            if holes > sequence.holes[group]:
                entry.holes[group] = sequence.holes[group] = holes
                sequence.tables[group][:holes] = [0] * holes
                self.counts.holes += 1

    def _place(self, entry: Entry, step: v1.StepRequest) -> None:
        """Puts the entry into its step, and counts on the step's success."""
        sequence = entry.sequence
        if entry.registration is not None:
            step.new_sequences.append(entry.registration)
        if self._is_plain(entry):
            entry.column = len(step.decode_sequence_ids)
            step.decode_sequence_ids.append(sequence.number)
        else:
            entry.item = len(step.items)
            step.items.append(self._item(entry))
        sequence.position = entry.end
        if entry.sample:
            sequence.explicit = False
            if not entry.drafts:
                sequence.known += 1

    @staticmethod
    def _is_plain(entry: Entry) -> bool:
        sequence = entry.sequence
        changed = entry.fresh or entry.appended is not None or entry.holes or entry.drafts
        return (
            entry.row_count == 1
            and entry.sample
            and entry.start >= sequence.prompt_length
            and not changed
            and not sequence.explicit
            and sequence.position == entry.start
        )

    def _item(self, entry: Entry) -> v1.StepItem:
        sequence = entry.sequence
        item = v1.StepItem(
            sequence_id=sequence.number,
            start_position=entry.start,
            row_count=entry.row_count,
            sample=entry.sample,
            draft_token_ids=entry.drafts,
        )
        if sequence.explicit:
            item.explicit.token_ids.extend(sequence.tokens[entry.start : entry.end])
        else:
            item.registered.SetInParent()
        if entry.replaced is not None:
            item.replace.tables.extend(self._pool.tables(entry.replaced))
        elif entry.appended is not None:
            item.append.tables.extend(self._pool.tables(entry.appended))
        for group, count in entry.holes.items():
            item.leading_holes.add(group=group, count=count)
        return item

    def _copy(self, source: int, destination: int, step: v1.StepRequest) -> None:
        for group, leased in enumerate(self._pool.leased):
            step.block_copies.add(
                group=group,
                source_block_id=leased[source],
                destination_block_id=leased[destination],
            )

    def _count(self, entries: list[Entry]) -> None:
        counts = self.counts
        counts.steps += 1
        prefills = [e for e in entries if e.row_count > 1 or not e.sample]
        counts.mixed_steps += 0 < len(prefills) < len(entries)
        counts.prefilled_rows += sum(entry.row_count for entry in prefills)
        prefixes = [entry.start for entry in entries if entry.fresh]
        counts.prefix_rows += sum(prefixes)
        if any(prefixes):
            counts.same_step_prefixes += self._same_step_prefixes(entries)
        counts.drafts += sum(len(entry.drafts) for entry in entries)

    def _same_step_prefixes(self, entries: list[Entry]) -> int:
        """Number of requests that read a block which one before them writes."""
        size, count = self._block_size, 0
        written: set[tuple[int, int]] = set()
        for entry in entries:
            end = -(-entry.end // size)
            for group, table in enumerate(entry.sequence.tables):
                written.update((group, block) for block in table[entry.start // size : end])
            if entry.fresh and entry.start:
                count += not written.isdisjoint(self._blocks_read(entry))
        return count

    def _blocks_read(self, entry: Entry) -> Iterator[tuple[int, int]]:
        for group, window in enumerate(self._windows):
            first = window.first_read(entry.start) // self._block_size
            for block in entry.sequence.tables[group][first : -(-entry.start // self._block_size)]:
                yield group, block
