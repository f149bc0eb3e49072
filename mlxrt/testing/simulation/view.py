"""What a simulated client believes of its session once all that it has sent is true."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from mlxrt_client.v1 import session_pb2, step_pb2

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
    """

    sequence_id: int
    tokens: list[int]
    tables: list[list[int]]
    goal: int
    position: int = 0
    given: bool = False
    failed: bool = False

    @property
    def preempted(self) -> bool:
        """Whether it has no tables."""
        return not any(self.tables)


Slot = tuple[ClientSequence, int, int] | None
"""Where an answer's token goes, and the number that it replaces; None where nothing is sampled."""


@dataclass(slots=True)
class Composed:
    """A step and where the tokens of its answer go; `starts` are the first rows by sequence id."""

    step: step_pb2.StepRequest = field(default_factory=step_pb2.StepRequest)
    decodes: list[Slot] = field(default_factory=list)
    items: list[Slot] = field(default_factory=list)
    starts: dict[int, int] = field(default_factory=dict)

    def take(self, answer: step_pb2.StepResponse) -> bool:
        """Takes the tokens in; answers False where a sequence failed."""
        whole = True
        results = answer.results[len(answer.results) - len(self.items) :]
        tokens = [(token,) for token in answer.token_ids]
        tokens += [tuple(result.token_ids) for result in results]
        failed = [token[0] == FAILED_TOKEN for token in tokens[: len(self.decodes)]]
        failed += [result.HasField("error") for result in results]
        for slot, sampled, bad in zip(self.decodes + self.items, tokens, failed, strict=True):
            whole = whole and not bad
            if slot is not None and not bad and sampled:
                sequence, index, number = slot
                if index < len(sequence.tokens) and sequence.tokens[index] == number:
                    sequence.tokens[index] = sampled[0]
        return whole


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
            )  # fmt: skip
            self.next_id = max(self.next_id, each.sequence_id + 1)
