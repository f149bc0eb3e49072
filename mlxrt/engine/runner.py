"""Runs plans one after the other: build, launch, read.

A step is built while the one before may be running; its tokens come from there as lazy arrays. Each
step is one lazy graph and one `async_eval`; one that defers its sampling is two of both, and what
is between them is kept here.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

import mlx.core as mx
import numpy as np

from mlxrt.attention import AttendCounts
from mlxrt.core.step import Phase, StepOutcome, StepPlan
from mlxrt.engine.batch import Batch, apply_changes, build_batch, place_codes, undo_batch
from mlxrt.engine.compiled import CompileCounts
from mlxrt.engine.counters import EngineCounters
from mlxrt.engine.failed_sequences import FailedSequences
from mlxrt.engine.flight import Flight, microseconds_since
from mlxrt.engine.forward import Forward, StepValues
from mlxrt.engine.mirrors import SequenceMirrors, resolve_before
from mlxrt.engine.outcome import outcome_of
from mlxrt.engine.sampling import SamplingBatch
from mlxrt.engine.step_failures import execution_failed, predecessor_failed
from mlxrt.engine.step_rules import step_rules
from mlxrt.errors import MlxrtError


class DeviceLostError(Exception):
    """The device's state can't be trusted any more; no later step may run."""


@dataclass(frozen=True, slots=True)
class _HeldForward:
    """A forward whose sampling is deferred: its plan, its rows, and their hidden states."""

    plan: StepPlan
    batch: Batch | None
    hidden: mx.array | None


class StepRunner:
    """Plans in, outcomes out, in order.

    One thread begins plans. Whoever reads launched steps, if that is another thread, may finish
    those that went well, also while the first one is inside a launch.

    Attributes:
        flights: plans begun and not finished, oldest first.
        counters: what was done so far.
    """

    def __init__(
        self,
        forward: Forward,
        *,
        block_size: int,
        vocabulary_size: int,
        buckets: tuple[int, ...],
    ) -> None:
        """Takes over the forward."""
        self.flights: deque[Flight] = deque()
        self.counters = EngineCounters()
        self._forward = forward
        self._block_size = block_size
        self._buckets = buckets
        self._hand_over: Callable[[Flight], None] | None = None
        # Guards flights, mirrors and counts. Let go of while a launch blocks.
        self._turn = threading.Lock()
        # Finished by another thread; dropped, with their arrays, by the one that begins plans.
        self._finished: list[Flight] = []
        self._mirrors = SequenceMirrors(forward.group_count, vocabulary_size)
        self._parity = 0
        self._failed = FailedSequences()
        self._held: dict[int, _HeldForward] = {}
        # When the step that was read last had ended, as far as this thread saw.
        self._device_idle_s = 0.0

    @property
    def trace_count(self) -> int:
        """Compiled steps that had to be traced since the counters started."""
        compiled = self._forward.compiled
        return 0 if compiled is None else compiled.counts.traces

    @property
    def group_count(self) -> int:
        """Groups of layers that share a table."""
        return self._forward.group_count

    def reset_counters(self) -> None:
        """Starts all counts anew."""
        self.counters = EngineCounters()
        self._forward.path.counts = AttendCounts()
        if self._forward.compiled is not None:
            self._forward.compiled.counts = CompileCounts()
        self._forward.sampler.steps = 0

    def read_elsewhere(self, hand_over: Callable[[Flight], None]) -> None:
        """From now on launched flights are handed over to be read, and then finished by
        `finish_read`.
        """
        self._hand_over = hand_over

    def begin(self, plan: StepPlan, deliver: Callable[[StepOutcome], None]) -> None:
        """Builds and launches a plan; delivers the outcomes that have to be read before that,
        before that.

        Raises:
            DeviceLostError: the device failed.
        """
        with self._turn:
            self._finished.clear()
            self._begin(plan, deliver)

    def finish(self) -> StepOutcome:
        """Waits for the oldest plan and returns its outcome; where nobody else reads.

        Raises:
            DeviceLostError: the device failed.
        """
        with self._turn:
            return self._finish()

    def finish_read(self, deliver: Callable[[StepOutcome], None], *, recover: bool) -> None:
        """Delivers the outcomes that nothing has to be waited for any more.

        Args:
            recover: go on over a step that could not be read. For the thread that begins plans.

        Raises:
            DeviceLostError: the device failed.
        """
        with self._turn:
            while self.flights and not self._must_wait(self.flights[0], recover):
                deliver(self._finish())

    def _must_wait(self, flight: Flight, recover: bool) -> bool:
        if not flight.on_device:
            return False
        return not flight.was_read.is_set() or (flight.read_error is not None and not recover)

    def _begin(self, plan: StepPlan, deliver: Callable[[StepOutcome], None]) -> None:
        while sum(flight.on_device for flight in self.flights) > 1:
            self._finish_oldest(deliver)
        # Deferred sampling finds its forward ended, and every token before it read.
        while self.flights and plan.phase is Phase.SAMPLING:
            self._finish_oldest(deliver)
        flight = Flight(plan)
        started_s = flight.timings.begun_s = time.perf_counter()
        apply_changes(plan, self._mirrors)
        self._failed.retire(plan.retired)
        predecessor = self.flights[-1] if self.flights else None
        self.flights.append(flight)
        if plan.cancelled:
            self._drop(plan.ticket)
            flight.failure = predecessor_failed()
            return
        if plan.phase is Phase.SAMPLING:
            self._build_sampling(flight)
        else:
            self._build(flight)
        flight.timings.build_us = microseconds_since(started_s)
        while not self._forward.path.overlaps and len(self.flights) > 1:
            self._finish_oldest(deliver)
        if flight.graph is not None:
            if predecessor is not None and predecessor.failure is not None:
                self._fail_dependent(flight, predecessor)
            if flight.failure is None:
                self._launch(flight)
            else:
                self._forward.restore(flight.snapshot)

    def _finish_oldest(self, deliver: Callable[[StepOutcome], None]) -> None:
        """Waits for the oldest plan and delivers its outcome, or lets the thread that reads it."""
        oldest = self.flights[0]
        if self._hand_over is None or not oldest.on_device or oldest.was_read.is_set():
            deliver(self._finish())
            return
        # That thread needs the turn to deliver the step before, and only then reads this one.
        self._turn.release()
        try:
            oldest.was_read.wait()
        finally:
            self._turn.acquire()

    def _finish(self) -> StepOutcome:
        flight = self.flights[0]
        if self._hand_over is None and flight.on_device:
            flight.read()
        self.flights.popleft()
        self._finished.append(flight)
        if flight.plan.cancelled and flight.failure is None:
            self._fail(flight, predecessor_failed())
        outcome = None
        if flight.failure is None:
            outcome = self._take_values(flight)
        flight.snapshot = []  # nothing to take back any more, and handles keep pools alive
        if flight.failure is not None or outcome is None:
            self.counters.failed_steps += not flight.plan.cancelled
            assert flight.failure is not None
            return StepOutcome(flight.plan.ticket, timings=flight.timings, failure=flight.failure)
        if flight.plan.phase is not Phase.FORWARD:
            failed = self._failed.spread(flight.plan, outcome, self._mirrors)
            self.counters.failed_sequences += failed
        return outcome

    def _build(self, flight: Flight) -> None:
        """Builds the plan's graph; a failure is left in the flight, everything else as it was."""
        plan, forward = flight.plan, self._forward
        unread = self._unread_tokens()
        flight.snapshot = forward.pools()
        try:
            flight.batch = build_batch(
                plan, self._mirrors, self._block_size, self._buckets, 1 - self._parity
            )
            if flight.batch is not None:
                self._parity = flight.batch.parity
            elif not plan.copies:
                return
            if plan.copies:
                forward.copy_blocks(plan.copies)
            if plan.phase is Phase.FORWARD:
                flight.graph = forward.build_hidden(flight.batch, unread)
            else:
                sampling = self._rules(flight)
                self._look_up_prompt(flight.batch)
                flight.graph = forward.build(flight.batch, sampling, unread)
        except Exception as error:  # whatever it was, only this step fails
            forward.restore(flight.snapshot)
            self._fail(flight, execution_failed("building the step", error))

    def _build_sampling(self, flight: Flight) -> None:
        """Builds the sampling of a forward that has ended, as `_build` does."""
        held = self._held.pop(flight.plan.ticket, None)
        if held is None:
            flight.failure = predecessor_failed()
            return
        flight.plan = replace(held.plan, phase=Phase.SAMPLING, masks=flight.plan.masks)
        flight.batch = held.batch
        flight.snapshot = self._forward.pools()
        if held.batch is None:
            return
        try:
            self._parity = 1 - self._parity
            place_codes(held.batch, self._mirrors, self._parity)
            sampling = self._rules(flight)
            self._look_up_prompt(held.batch)
            if held.hidden is not None and held.hidden.shape[0]:
                flight.graph = self._forward.build_sampling(held.hidden, held.batch, sampling)
        except Exception as error:  # whatever it was, only this step fails
            self._fail(flight, execution_failed("building the sampling", error))

    def _rules(self, flight: Flight) -> SamplingBatch | None:
        """The rules of the selected rows; None without any."""
        if flight.batch is None:
            return None
        return step_rules(flight.batch, self._mirrors, flight.plan.masks)

    def _look_up_prompt(self, batch: Batch | None) -> None:
        if batch is not None and batch.prompt is not None:
            prompt = batch.prompt
            prompt.tokens = self._mirrors.tokens[prompt.lines, prompt.positions]

    def _drop(self, ticket: int) -> None:
        """Forgets a forward that will not be sampled."""
        held = self._held.pop(ticket, None)
        if held is not None and held.batch is not None:
            undo_batch(held.batch, self._mirrors)

    def _unread_tokens(self) -> mx.array | None:
        """The tokens of the one step that may be on the device while the next is built."""
        running = [flight for flight in self.flights if flight.on_device]
        return running[-1].unread_tokens() if running else None

    def _launch(self, flight: Flight) -> None:
        """Hands the graph to the device: the step's one evaluation."""
        assert flight.graph is not None
        forward, counters, batch = self._forward, self.counters, flight.batch
        if not forward.path.overlaps:
            flight.snapshot = []
        counters.steps += 1
        counters.async_evals += 1
        counters.compiled_steps += flight.graph.is_compiled
        if batch is not None and flight.plan.phase is not Phase.SAMPLING:
            counters.rows += batch.row_count
            counters.padding_rows += batch.bucket_row_count - batch.row_count
        if batch is not None and flight.plan.phase is not Phase.FORWARD:
            counters.head_rows += len(batch.selected_sequences)
        flight.launched, flight.launched_s = True, time.perf_counter()
        try:
            arrays = [*flight.graph.arrays(), *forward.pools(), flight.graph.signal]
            self._turn.release()
            try:
                mx.async_eval(arrays)  # type: ignore[no-untyped-call]
            finally:
                self._turn.acquire()
        except Exception as error:
            self._recover(flight, "launching the step", error)
            return
        flight.snapshot = []
        if self._hand_over is not None:
            self._hand_over(flight)

    def _take_values(self, flight: Flight) -> StepOutcome | None:
        """The outcome of what was read; None where reading failed."""
        batch = flight.batch
        if flight.graph is None:
            return self._hold(flight) or outcome_of(flight, StepValues([], {}, None))
        if flight.values is None:
            assert flight.read_error is not None
            self._recover(flight, "waiting for the step", flight.read_error)
            return None
        busy_from_s = max(flight.launched_s, self._device_idle_s)
        flight.timings.device_from_s = busy_from_s
        flight.timings.device_us = int((flight.ended_s - busy_from_s) * 1e6)
        self._device_idle_s = flight.ended_s
        if (held := self._hold(flight)) is not None:
            return held
        outcome = outcome_of(flight, flight.values)
        if batch is not None:
            self._resolve(batch, np.array(flight.values.tokens, np.int32))
            self._keep_accepted(flight.plan, outcome)
        flight.timings.sample_us = microseconds_since(flight.ended_s)
        return outcome

    def _hold(self, flight: Flight) -> StepOutcome | None:
        """Keeps what the sampling of a forward needs, and answers it; None for other plans."""
        plan, batch = flight.plan, flight.batch
        if plan.phase is not Phase.FORWARD:
            return None
        hidden = None if flight.graph is None else flight.graph.hidden
        self._held[plan.ticket] = _HeldForward(plan, batch, hidden)
        bucket = 0 if batch is None else batch.bucket_row_count
        return StepOutcome(plan.ticket, timings=flight.timings, bucket_row_count=bucket)

    def _resolve(self, batch: Batch, tokens: np.ndarray[tuple[int], np.dtype[np.int32]]) -> None:
        """Puts the tokens that were read in the place of their codes."""
        assert batch.pending is not None
        self._mirrors.resolve(batch.pending, batch.codes, tokens[batch.coded])
        for later in self.flights:
            if later.batch is not None:
                for overwrite in (later.batch.pending, *later.batch.overwrites):
                    if overwrite is not None:
                        resolve_before(overwrite, batch.parity, tokens)

    def _keep_accepted(self, plan: StepPlan, outcome: StepOutcome) -> None:
        """Puts the tokens of sequences with drafts into the mirrors."""
        for entry, row in zip(plan.entries, outcome.entry_rows, strict=True):
            if entry.draft_tokens and row.token is not None:
                accepted = list(entry.draft_tokens[: len(row.accepted)])
                end = entry.start + entry.count
                self._mirrors.put(entry.handle, end, [*accepted, row.token])
                self.counters.drafts += len(entry.draft_tokens)
                self.counters.accepted_drafts += len(accepted)

    def _fail(self, flight: Flight, failure: MlxrtError) -> None:
        """Marks the step failed, with those that follow from it, and takes back what they wrote.

        Newest first: a later step's record of what stood before may name this step's tokens.
        """
        for later in reversed(self.flights):
            if later is flight:
                break
            self._fail_dependent(later, flight)
        flight.failure = failure
        if flight.batch is not None:
            undo_batch(flight.batch, self._mirrors)

    def _fail_dependent(self, later: Flight, failed: Flight) -> None:
        """Fails a step that takes tokens or positions from one that failed."""
        if later.failure is not None or later.batch is None or failed.batch is None:
            return
        if not set(later.batch.handles).isdisjoint(failed.batch.handles):
            self._fail(later, predecessor_failed())

    def _recover(self, flight: Flight, activity: str, error: Exception) -> None:
        """Fails the step after an error of the device, or raises where the pool is lost with it."""
        if mx.default_device() != mx.Device(mx.cpu):
            raise DeviceLostError(f"{activity}: {error}") from error
        if flight.snapshot:
            self._forward.restore(flight.snapshot)
        failure = execution_failed(activity, error)
        for later in self.flights:
            if later is not flight and later.on_device and not later.launched:
                # It is built on what failed; its handles of the pool are not to be evaluated.
                self._fail(later, failure)
                self._forward.restore(later.snapshot)
        try:
            mx.eval(self._forward.pools())
        except Exception as second:
            raise DeviceLostError(f"{activity}: {error}; then the pool: {second}") from error
        self._fail(flight, failure)
