"""What the reference scheduler keeps: sequences as sent, the plan of a step, tokens, statistics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mlxrt_client.errors import MlxrtError
from mlxrt_client.v1 import SamplingParams, StepRequest, StepTimings


@dataclass(frozen=True, slots=True)
class Token:
    """One token of one sequence.

    Attributes:
        token_id: None where the sequence failed.
        finish: "stop", "length" or "error" with the sequence's last token, else None.
        error: why the sequence failed.
    """

    sequence_id: int
    token_id: int | None
    finish: str | None = None
    error: MlxrtError | None = None


@dataclass(slots=True)
class Statistics:
    """What a scheduler has done so far.

    Attributes:
        mixed_step_count: steps that had decode rows and prefill rows.
        row_count: rows, those that compute a preempted sequence again included.
        token_count: tokens yielded.
        preemption_count: tables taken away.
        discard_count: steps that were accepted and did not commit.
        inflight_steps_max: most steps that were unanswered at once.
        blocks_used_max: by group, the most blocks that tables named at once.
        left_count: blocks taken back because they left a window.
        queue_us, build_us, device_us, sample_us: the server's own times, summed over the steps.
    """

    step_count: int = 0
    mixed_step_count: int = 0
    row_count: int = 0
    token_count: int = 0
    preemption_count: int = 0
    discard_count: int = 0
    inflight_steps_max: int = 0
    blocks_used_max: dict[int, int] = field(default_factory=dict)
    left_count: int = 0
    queue_us: int = 0
    build_us: int = 0
    device_us: int = 0
    sample_us: int = 0

    def count_plan(self, plan: Plan, inflight_count: int, blocks_used: Mapping[int, int]) -> None:
        """Counts a step sent, when `inflight_count` with it are unanswered."""
        self.step_count += 1
        self.mixed_step_count += bool(plan.decode_row_count and plan.prefill_row_count)
        self.row_count += plan.row_count
        self.inflight_steps_max = max(self.inflight_steps_max, inflight_count)
        for group, count in blocks_used.items():
            self.blocks_used_max[group] = max(self.blocks_used_max.get(group, 0), count)

    def count_times(self, timings: StepTimings) -> None:
        """Adds the times of a step answered."""
        self.queue_us += timings.queue_us
        self.build_us += timings.build_us
        self.device_us += timings.device_us
        self.sample_us += timings.sample_us


@dataclass(slots=True, eq=False)
class ScheduledSequence:
    """A sequence as it stands after all steps sent.

    Attributes:
        tables: block ids by group, 0 for those that left a window; empty while it waits.
        position: of the next row.
        token_count: tokens known to the server: prompt, sampled, and those that a step in flight
            samples.
        received_count: sampled tokens that have arrived.
        registered: the server knows it.
        finish: as in `Token`; set when it has ended.
    """

    sequence_id: int
    prompt: list[int]
    tokens_max: int
    stop_token_ids: frozenset[int]
    sampling: SamplingParams | None
    token_count: int
    tables: dict[int, list[int]] = field(default_factory=dict)
    position: int = 0
    received_count: int = 0
    registered: bool = False
    finish: str | None = None

    @property
    def wants_rows(self) -> bool:
        """Whether another token is to be sampled, beyond those that steps in flight sample."""
        return self.finish is None and self.token_count - len(self.prompt) < self.tokens_max

    @property
    def decodes(self) -> bool:
        """Whether its next row is the token sampled last."""
        return self.position == self.token_count - 1 and self.token_count > len(self.prompt)


@dataclass(slots=True)
class Plan:
    """A step and what its answer will be about: the sequences of its column and of its items."""

    step: StepRequest = field(default_factory=StepRequest)
    released: list[ScheduledSequence] = field(default_factory=list)
    column: list[ScheduledSequence] = field(default_factory=list)
    items: list[ScheduledSequence] = field(default_factory=list)
    decode_row_count: int = 0
    prefill_row_count: int = 0

    def __contains__(self, sequence: ScheduledSequence) -> bool:
        return sequence in self.column or sequence in self.items

    @property
    def sequence_count(self) -> int:
        """Sequences of the step."""
        return len(self.column) + len(self.items)

    @property
    def row_count(self) -> int:
        """Rows of the step."""
        return self.decode_row_count + self.prefill_row_count
