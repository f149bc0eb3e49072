"""What a simulated client believes of its session once all that it has sent is true."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from mlxrt_client.v1 import ErrorReason, session_pb2, step_pb2

from mlxrt.core.step import FAILED_TOKEN


@dataclass(slots=True, eq=False)
class ClientSequence:
    """A sequence.

    Attributes:
        tokens: known tokens; one that is sampled and not yet answered is a negative number of its
            own.
        tables: by group; 0 is a hole.
        goal: known tokens at which it is done.
        given: whether its last token was sampled or given.
        unsettled: a step in flight verifies drafts of it; position and tokens are those without
            any.
        moves: how often its tables were replaced.
        prompt_count: tokens of its prompt; None for somebody who took it over.
        prompt_top: alternatives of its prompt logprobs; None where it asked for none.
    """

    sequence_id: int
    tokens: list[int]
    tables: list[list[int]]
    goal: int
    position: int = 0
    given: bool = False
    failed: bool = False
    unsettled: bool = False
    moves: int = 0
    prompt_count: int | None = None
    prompt_top: int | None = None

    @property
    def preempted(self) -> bool:
        """Whether it has no tables."""
        return not any(self.tables)


@dataclass(slots=True)
class Rows:
    """What a sequence does in a step that was sent.

    Attributes:
        end: where it stands after its rows, no draft accepted.
        number: stands in its tokens, at `end`, for the token that is sampled; 0 for none.
        drafts: verified behind its rows.
        moves: of the sequence, after the step's table change.
        described: the tokens whose logprobs are to come, first position and number; None where
            nobody knows.
        allowed: by sampled row, the tokens that its mask allows, as bits; empty without a mask.
    """

    sequence: ClientSequence
    end: int
    number: int = 0
    drafts: list[int] = field(default_factory=list)
    moves: int = 0
    described: tuple[int, int] | None = None
    allowed: list[int] = field(default_factory=list)

    def take(self, tokens: Sequence[int]) -> None:
        """Takes the sampled tokens in: accepted drafts and one more."""
        sequence, index, accepted = self.sequence, self.end, len(tokens) - 1
        if not self.number:
            return
        if index < len(sequence.tokens) and sequence.tokens[index] == self.number:
            sequence.tokens[index : index + 1] = tokens
        if self.drafts:
            sequence.unsettled = False
            if sequence.moves == self.moves:
                sequence.position += accepted


@dataclass(slots=True)
class Composed:
    """A step and what it does with each sequence.

    Attributes:
        starts: by sequence id, first rows of those that others may start behind.
        items: one per item; None where it only changes tables.
        masks: what a step that defers its sampling gets later.
        failures_before: steps that had failed when it was sent.
        alone: no step is in flight before it.
    """

    step: step_pb2.StepRequest = field(default_factory=step_pb2.StepRequest)
    decodes: list[Rows] = field(default_factory=list)
    items: list[Rows | None] = field(default_factory=list)
    starts: dict[int, int] = field(default_factory=dict)
    masks: list[step_pb2.TokenMask] = field(default_factory=list)
    failures_before: int = 0
    alone: bool = True

    def rely_on(self, sequence_id: int) -> None:
        """Has the sequence's item say where it starts: behind a step that failed its rows would
        else be others than those which a sequence behind it relies on."""
        for item in self.step.items:
            if item.sequence_id == sequence_id:
                item.start_position = self.starts[sequence_id]

    def forget_masks(self) -> None:
        """Expects nothing of masks that are to be sent later."""
        if self.step.defer_sampling:
            for run in (*self.decodes, *self.items):
                if run is not None:
                    run.allowed = []

    def take(self, answer: step_pb2.StepResponse) -> list[str]:
        """Takes the tokens in; answers why sequences failed."""
        for rows, token in zip(self.decodes, answer.token_ids, strict=True):
            if token != FAILED_TOKEN:
                rows.take((token,))
        results = answer.results[len(answer.results) - len(self.items) :]
        for item, result in zip(self.items, results, strict=True):
            if item is not None and not result.HasField("error"):
                item.take(result.token_ids)
        failed = [result.error.reason for result in answer.results if result.HasField("error")]
        return [ErrorReason.Name(reason).removeprefix("ERROR_REASON_") for reason in failed]


class View:
    """Leased blocks and sequences.

    Attributes:
        leased: by group, block ids in the order of their leases.
    """

    def __init__(self, group_count: int) -> None:
        self.leased: list[dict[int, None]] = [{} for _ in range(group_count)]
        self.sequences: dict[int, ClientSequence] = {}
        self.next_id = 1

    def named(self) -> list[Counter[int]]:
        """By group, how often tables name each block."""
        counts: list[Counter[int]] = [Counter() for _ in self.leased]
        for sequence in self.sequences.values():
            for group, table in enumerate(sequence.tables):
                counts[group].update(block for block in table if block)
        return counts

    def free(self) -> list[list[int]]:
        """By group, leased blocks that no table names."""
        return [
            [block for block in leased if block not in named]
            for leased, named in zip(self.leased, self.named(), strict=True)
        ]

    def rebuild(self, state: session_pb2.GetSessionResponse, goal: int) -> None:
        """Believes the server; sequences nobody knows the goal of get `goal`."""
        groups = range(len(self.leased))
        leased = {table.group: list(table.block_ids) for table in state.leased_blocks}
        self.leased = [dict.fromkeys(leased.get(group, [])) for group in groups]
        known = self.sequences
        self.sequences = {}
        for each in state.sequences:
            tables = {table.group: list(table.block_ids) for table in each.tables}
            before = known.get(each.sequence_id)
            tokens = list(each.token_ids)
            self.sequences[each.sequence_id] = ClientSequence(
                each.sequence_id, tokens, [tables.get(group, []) for group in groups],
                goal if before is None else before.goal, each.position,
                each.position == len(tokens) - 1 and before is not None and before.given,
                each.HasField("failure"),
                prompt_count=None if before is None else before.prompt_count,
                prompt_top=None if before is None else before.prompt_top,
            )  # fmt: skip
            self.next_id = max(self.next_id, each.sequence_id + 1)
