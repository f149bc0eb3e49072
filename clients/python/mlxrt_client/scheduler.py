"""A reference scheduler: continuous batching in one readable file. Copy it and change the policy.

The loop keeps two steps in flight. It plans a step, sends it, and reads an answer only when two are
unanswered, so the device finds the next step waiting when it has done one. A plan rests on what is
known *after all steps sent*: a token that step N will sample counts as known when step N+1 is
planned, though nobody has seen it; the server feeds it on from where it lies.

A step is planned in this order:

1. *Release* the sequences that have ended. Their blocks are free for the rest of this very step.
2. *Decode*: one row for each running sequence that waits for nothing else. The plain case goes into
   the packed column `decode_sequence_ids`; one that crosses into a new block is an item that
   appends it. If no block is free, the youngest running sequence is *preempted*: its table is taken
   away, its tokens stay with the server, and it queues at the front to be computed again.
3. *Prefill*: what is left of the row budget goes to prompts that are under way, in chunks.
4. *Admit* waiting sequences while rows, sequences and blocks last; one takes all blocks for its
   known tokens, in a windowed group those that one step can see.

Stop tokens are seen one step late: the row that was sent meanwhile is dropped with its sequence.

A sequence that needs a block of a windowed group first gives back those that its window has left
(`_grow`), so its share of that group stays the same however long it gets. Prefixes are not shared.

Source: continuous batching, Yu et al., Orca (OSDI 2022); chunked prefill mixed with decode, Agrawal
et al., Sarathi-Serve (OSDI 2024); preemption by recomputation, Kwon et al., vLLM (SOSP 2023).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from itertools import islice

from mlxrt_client import messages
from mlxrt_client.blocks import BlockAllocator
from mlxrt_client.errors import (
    InvalidRequestError,
    MlxrtError,
    PreconditionError,
    StepDiscardedError,
    error_from_message,
)
from mlxrt_client.layout import BlockLayout, Tables
from mlxrt_client.plan import Plan, ScheduledSequence, Statistics, Token
from mlxrt_client.session import Session
from mlxrt_client.v1 import GetModelInfoResponse, Limits, SamplingParams, StepResponse

DISCARDS_MAX = 3
"""Steps discarded in a row after which the scheduler gives up."""


class Scheduler:
    """Generates tokens for any number of prompts on one session. One thread drives it."""

    def __init__(
        self,
        session: Session,
        model: GetModelInfoResponse,
        limits: Limits,
        *,
        block_count: int = 0,
        step_rows_max: int = 256,
        inflight_steps: int = 2,
    ) -> None:
        """Leases the blocks.

        Args:
            session: whose stream it will use.
            model: from `Client.model_info`.
            limits: from `Client.server_info`.
            block_count: blocks to lease in each group, or all of a group that has fewer; 0 for all.
            step_rows_max: rows of a step: the budget that decodes and prefill chunks share.
            inflight_steps: steps without an answer.

        Raises:
            OutOfBlocksError: the pool has too few free blocks.
        """
        self.statistics = Statistics()
        self._session = session
        self._length_max = limits.max_model_length
        self._registered_max = limits.max_sequences
        self._rows_max = min(step_rows_max, limits.max_step_rows)
        self._sequences_max = min(limits.max_step_sequences, self._rows_max)
        self._depth = min(inflight_steps, limits.max_inflight_steps)
        self._layout = BlockLayout(model, self._rows_max)
        self._blocks = BlockAllocator()
        pool = {group.group: group.block_count - 1 for group in model.groups}
        self._leased = {g: min(block_count, count) or count for g, count in pool.items()}
        self._blocks.add(session.allocate_blocks(self._leased))
        self._known: dict[int, ScheduledSequence] = {}
        self._waiting: deque[ScheduledSequence] = deque()
        self._running: list[ScheduledSequence] = []
        self._ended: list[ScheduledSequence] = []
        self._torn: list[ScheduledSequence] = []
        self._next_sequence_id = 1
        self._registered_count = 0
        self._undelivered: deque[Token] = deque()
        self._interrupted = False

    def add(
        self,
        prompt: Sequence[int],
        tokens_max: int,
        *,
        stop_token_ids: Sequence[int] = (),
        sampling: SamplingParams | None = None,
    ) -> int:
        """Queues a prompt and returns its sequence id. Allowed between two tokens of `run`.

        Raises:
            ValueError: no tokens, or more than the model or the leased blocks can hold.
        """
        length = len(prompt) + tokens_max
        if not prompt or tokens_max < 1:
            raise ValueError("a prompt of at least one token and at least one new token are needed")
        # The last token sampled is never a row, so it needs no slot.
        held = self._layout.held(length - 1)
        if length > self._length_max or any(n > self._leased[g] for g, n in held.items()):
            raise ValueError(f"{length} tokens are more than the model or the blocks can hold")
        sequence = ScheduledSequence(
            self._next_sequence_id, list(prompt), tokens_max, frozenset(stop_token_ids), sampling,
            token_count=len(prompt),
        )  # fmt: skip
        self._next_sequence_id += 1
        self._known[sequence.sequence_id] = sequence
        self._waiting.append(sequence)
        return sequence.sequence_id

    def run(self) -> Iterator[Token]:
        """Yields tokens as they arrive, until every prompt added has ended.

        Called again after it was left early, it goes on where the server stands, with the tokens
        that were missed.

        Raises:
            MlxrtError: the session is lost, the server can't be reached, or steps are discarded
                again and again.
        """
        yield from self._deliver([])
        inflight: deque[tuple[Plan, Future[StepResponse]]] = deque()
        if self._interrupted:
            yield from self._deliver(self._recover(inflight))
        self._interrupted = True
        discards = 0
        with self._session.stream(self._depth) as stream:
            while True:
                while len(inflight) < self._depth and (plan := self._plan()) is not None:
                    inflight.append((plan, stream.submit(plan.step)))
                    used = {group: self._blocks.used_count(group) for group in self._leased}
                    self.statistics.count_plan(plan, len(inflight), used)
                if not inflight:
                    self._interrupted = False
                    return
                plan, future = inflight.popleft()
                try:
                    tokens = self._receive(plan, future.result())
                    discards = 0
                except StepDiscardedError:
                    discards += 1
                    self.statistics.discard_count += 1
                    if discards > DISCARDS_MAX:
                        raise
                    tokens = self._recover(inflight)
                yield from self._deliver(tokens)

    def _deliver(self, tokens: list[Token]) -> Iterator[Token]:
        """Yields what an earlier run had received and not yielded, then `tokens`."""
        self._undelivered.extend(tokens)
        while self._undelivered:
            yield self._undelivered.popleft()

    def close(self) -> None:
        """Gives the blocks back. The sequences must have ended."""
        free = {group: self._blocks.take_free(group, n) for group, n in self._leased.items()}
        self._session.free_blocks(free)

    # ---- planning a step ----------------------------------------------------------------------

    def _plan(self) -> Plan | None:
        """Plans the next step, or returns None where there is nothing to do."""
        plan = Plan(released=self._ended)
        self._ended = []
        for sequence in plan.released:
            plan.step.release_sequence_ids.append(sequence.sequence_id)
            self._blocks.release(sequence.tables)
        while self._torn:
            self._preempt(plan, self._torn.pop())
        for sequence in list(self._running):  # without tables it was preempted just now
            if sequence.tables and sequence.wants_rows and sequence.decodes:
                self._plan_decode(plan, sequence)
        for sequence in list(self._running):
            if sequence.tables and sequence.wants_rows and not sequence.decodes:
                self._plan_chunk(plan, sequence)
        self._admit(plan)
        if plan.sequence_count or plan.step.release_sequence_ids:
            return plan
        return None

    def _plan_decode(self, plan: Plan, sequence: ScheduledSequence) -> None:
        """One row from the token sampled last."""
        growth = self._grow(plan, sequence, sequence.token_count)
        if growth is None:
            return
        blocks, holes = growth
        if blocks:
            item = messages.decode_item(sequence.sequence_id, append=blocks, leading_holes=holes)
            plan.step.items.append(item)
            plan.items.append(sequence)
        else:
            plan.step.decode_sequence_ids.append(sequence.sequence_id)
            plan.column.append(sequence)
        plan.decode_row_count += 1
        sequence.position += 1
        sequence.token_count += 1

    def _grow(
        self, plan: Plan, sequence: ScheduledSequence, position_count: int
    ) -> tuple[Tables, dict[int, int]] | None:
        """Gives a sequence the blocks that it lacks for so many positions, if any.

        First it gives back its own that left a window; where that is not enough, the youngest
        sequences without rows in this plan are preempted.

        Returns:
            The blocks and the number of leading holes, by group; None where it was preempted.
        """
        missing = self._layout.missing(sequence.tables, position_count)
        if not missing:
            return {}, {}
        holes, left = self._layout.take_left(sequence.tables, sequence.position)
        self._blocks.release(left)
        self.statistics.left_count += sum(map(len, left.values()))
        while not self._blocks.can_allocate(missing):
            victim = next(s for s in reversed(self._running) if s not in plan)
            self._preempt(plan, victim)
            if victim is sequence:
                return None
        blocks = self._blocks.allocate(missing)
        for group, block_ids in blocks.items():
            sequence.tables[group] += block_ids
        return blocks, holes

    def _preempt(self, plan: Plan, sequence: ScheduledSequence) -> None:
        """Takes the tables of a sequence that has no rows in this plan; its tokens stay."""
        plan.step.items.append(messages.preempt_item(sequence.sequence_id))
        plan.items.append(sequence)
        self._blocks.release(sequence.tables)
        sequence.tables, sequence.position = {}, 0
        self._running.remove(sequence)
        self._waiting.appendleft(sequence)
        self.statistics.preemption_count += 1

    def _plan_chunk(
        self, plan: Plan, sequence: ScheduledSequence, *, admitted: bool = False
    ) -> None:
        """As many rows as the budget has, of tokens that the server knows; the last one samples."""
        rows_left = sequence.token_count - sequence.position
        row_count = min(rows_left, self._rows_max - plan.row_count)
        if not row_count:
            return
        growth = self._grow(plan, sequence, sequence.position + row_count)
        if growth is None:
            return
        blocks, holes = growth
        resumed = admitted and sequence.registered
        if admitted and not resumed:
            plan.step.new_sequences.append(
                messages.new_sequence(
                    sequence.sequence_id, sequence.prompt, sequence.tables, sequence.sampling
                )
            )
            sequence.registered = True
            self._registered_count += 1
        item = messages.chunk_item(
            sequence.sequence_id,
            row_count,
            sample=row_count == rows_left,
            start_position=0 if resumed else None,
            append=blocks or None,
            replace=sequence.tables if resumed else None,
            leading_holes=holes,
        )
        plan.step.items.append(item)
        plan.items.append(sequence)
        plan.prefill_row_count += row_count
        sequence.position += row_count
        sequence.token_count += int(item.sample)

    def _admit(self, plan: Plan) -> None:
        """Starts or resumes waiting sequences, in order, each with blocks for its known tokens."""
        for sequence in tuple(islice(self._waiting, self._sequences_max)):
            if not sequence.wants_rows:
                continue
            if sequence in plan:  # preempted just now: nobody younger takes its blocks
                return
            counts = self._layout.held(sequence.token_count)
            if (
                plan.row_count >= self._rows_max
                or len(self._running) >= self._sequences_max
                or plan.sequence_count >= self._sequences_max
                or self._registered_count >= self._registered_max + sequence.registered
                or not self._blocks.can_allocate(counts)
            ):
                return
            self._waiting.remove(sequence)
            self._running.append(sequence)
            sequence.tables = self._blocks.allocate(counts)
            self._plan_chunk(plan, sequence, admitted=True)

    # ---- reading an answer --------------------------------------------------------------------

    def _receive(self, plan: Plan, response: StepResponse) -> list[Token]:
        """Takes the answer to `plan` in and returns its tokens."""
        self.statistics.count_times(response.timings)
        for sequence in plan.released:
            del self._known[sequence.sequence_id]
        self._registered_count -= len(plan.released)
        tokens = []
        results = list(response.results)
        details = {r.sequence_id: r for r in results[: len(results) - len(plan.items)]}
        for sequence, token_id in zip(plan.column, response.token_ids, strict=True):
            detail = details.get(sequence.sequence_id)
            if detail is not None and detail.HasField("error"):
                tokens += self._fail(sequence, error_from_message(detail.error))
            else:
                tokens += self._extend(sequence, token_id)
        for result in results[len(results) - len(plan.items) :]:
            sequence = self._known[result.sequence_id]
            if result.HasField("error"):
                tokens += self._fail(sequence, error_from_message(result.error))
            for token_id in result.token_ids:
                tokens += self._extend(sequence, token_id)
        return tokens

    def _extend(self, sequence: ScheduledSequence, token_id: int) -> list[Token]:
        """Takes one sampled token in; a token behind the last one is dropped."""
        if sequence.finish is not None:
            return []
        sequence.received_count += 1
        self.statistics.token_count += 1
        if token_id in sequence.stop_token_ids:
            self._end(sequence, "stop")
        elif sequence.received_count == sequence.tokens_max:
            self._end(sequence, "length")
        return [Token(sequence.sequence_id, token_id, sequence.finish)]

    def _fail(self, sequence: ScheduledSequence, error: MlxrtError) -> list[Token]:
        """Ends a sequence that failed alone."""
        if sequence.finish is not None:
            return []
        self._end(sequence, "error")
        return [Token(sequence.sequence_id, None, "error", error)]

    def _end(self, sequence: ScheduledSequence, finish: str) -> None:
        sequence.finish = finish
        (self._running if sequence.tables else self._waiting).remove(sequence)
        self._ended.append(sequence)

    def _recover(self, inflight: deque[tuple[Plan, Future[StepResponse]]]) -> list[Token]:
        """Reads the answers behind a discarded step, then takes the server's word for all state.

        Steps sent before the failure was known rest on tokens that were never sampled: they are
        discarded too, or refused, or run from where the sequences stood. Tokens that the server
        knows and nobody has received are made up for.
        """
        tokens = []
        while inflight:
            plan, future = inflight.popleft()
            try:
                tokens += self._receive(plan, future.result())
            except (StepDiscardedError, InvalidRequestError, PreconditionError):
                continue
        state = self._session.state(tables=True, tokens=True)
        self._blocks = BlockAllocator()
        self._blocks.add(messages.tables_of(state.leased_blocks))
        held = {sequence.sequence_id: sequence for sequence in state.sequences}
        self._registered_count = len(held)
        for sequence in self._known.values():
            there = held.get(sequence.sequence_id)
            sequence.registered = there is not None
            sequence.tables = messages.tables_of(there.tables) if there else {}
            sequence.position = there.position if there else 0
            sequence.token_count = there.token_count if there else len(sequence.prompt)
            self._blocks.claim(sequence.tables)
        self._known = {
            s.sequence_id: s for s in self._known.values() if s.registered or not s.finish
        }
        unfinished = [s for s in self._known.values() if s.finish is None]
        self._ended = [s for s in self._known.values() if s.finish is not None]
        self._running = [s for s in unfinished if s.tables]
        self._waiting = deque(s for s in unfinished if not s.tables)
        for sequence in unfinished:
            if sequence.registered:
                known = held[sequence.sequence_id].token_ids
                for token_id in known[len(sequence.prompt) + sequence.received_count :]:
                    tokens += self._extend(sequence, token_id)
        # Blocks that left a window stay holes though the step that gave them back was discarded.
        self._torn = [s for s in self._running if self._layout.is_torn(s.tables, s.position)]
        return tokens
