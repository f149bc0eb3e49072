"""New sequences of a simulated client: alone, behind a shared or copied beginning, behind rows of
the same step, or in a queue."""

from __future__ import annotations

from mlxrt_client.v1 import step_pb2

from mlxrt.testing.simulation.rows import Free, RowComposer
from mlxrt.testing.simulation.view import ClientSequence, Composed, View

_PROMPT_MAX = 12
_TAIL_MAX = 4
"""Tokens of a prompt behind a beginning that others have."""


class Registrar:
    """Registers sequences, some with their first rows.

    Args:
        rows: composes those.
    """

    def __init__(self, rows: RowComposer) -> None:
        self._rows = rows
        self._random = rows.random

    def register(self, view: View, composed: Composed, free: Free) -> None:
        """A sequence, half of the time with the beginning of another."""
        rows = self._rows
        donors = [s for s in view.sequences.values() if self._shareable(s)]
        shared, copied, head = 0, 0, []
        donor = self._random.choice(donors) if donors and rows.chance(0.5) else None
        if donor is not None:
            most = min(donor.position, len(donor.tokens) - 1)
            while most and min(donor.tokens[:most]) < 0:
                most -= 1
            shared, copied = divmod(self._random.randint(0, most), rows.size)
            if rows.chance(0.5):
                copied = 0
            head = donor.tokens[: shared * rows.size + copied]
        prompt = head + self._tokens(_PROMPT_MAX if not head else _TAIL_MAX)
        if len(prompt) + _TAIL_MAX > rows.length_max:
            return
        groups = len(rows.facts.groups)
        fresh = rows.take(free, [rows.entries(len(prompt)) - shared] * groups)
        if fresh is None:
            return
        rows.made["share"] += shared > 0
        rows.made["copy"] += copied > 0
        tables = [
            own if donor is None else donor.tables[g][:shared] + own for g, own in enumerate(fresh)
        ]
        if copied and donor is not None:
            for group, own in enumerate(fresh):
                composed.step.block_copies.add(
                    group=group, source_block_id=donor.tables[group][shared],
                    destination_block_id=own[0],
                )  # fmt: skip
        sequence = self._add(view, composed.step, prompt, tables)
        sequence.position = len(head)
        rows.made["register"] += 1
        if head or rows.chance(0.8):
            start = len(head)
            rows.rows(sequence, composed, start, len(prompt) - start, start_given=True)

    def register_behind(self, view: View, composed: Composed, free: Free) -> None:
        """A sequence that starts behind blocks which rows of this very step fill."""
        rows = self._rows
        donors = [
            (sequence, shared)
            for sequence in view.sequences.values()
            if (start := composed.starts.get(sequence.sequence_id)) is not None
            and (shared := sequence.position // rows.size) * rows.size > start
            and min(sequence.tokens[: shared * rows.size]) >= 0
            and self._shareable(sequence)
        ]
        if not donors:
            return
        donor, shared = self._random.choice(donors)
        prompt = donor.tokens[: shared * rows.size] + self._tokens(_TAIL_MAX)
        if len(prompt) + _TAIL_MAX > rows.length_max:
            return
        fresh = rows.take(free, [rows.entries(len(prompt)) - shared] * len(donor.tables))
        if fresh is None:
            return
        rows.made["share in a step"] += 1
        composed.rely_on(donor.sequence_id)
        tables = [old[:shared] + own for old, own in zip(donor.tables, fresh, strict=True)]
        sequence = self._add(view, composed.step, prompt, tables)
        start = shared * rows.size
        rows.rows(sequence, composed, start, len(prompt) - start, start_given=True)

    def queue(self, view: View, composed: Composed, count: int) -> None:
        """Sequences of one beginning, without blocks so far."""
        rows = self._rows
        head = rows.random_tokens(2 * rows.size)
        for _ in range(count):
            rows.made["queue"] += 1
            tables: Free = [[] for _ in rows.facts.groups]
            self._add(view, composed.step, head + self._tokens(_TAIL_MAX), tables)

    def _tokens(self, most: int) -> list[int]:
        return self._rows.random_tokens(self._random.randint(1, most))

    def _add(
        self, view: View, step: step_pb2.StepRequest, prompt: list[int], tables: Free
    ) -> ClientSequence:
        rows = self._rows
        goal = min(len(prompt) + self._random.randint(1, 20), rows.length_max - 1)
        sequence = ClientSequence(
            view.next_id, prompt, tables, goal, prompt_count=len(prompt)
        )
        view.next_id += 1
        view.sequences[sequence.sequence_id] = sequence
        new = step.new_sequences.add(
            sequence_id=sequence.sequence_id, prompt_token_ids=prompt, tables=rows.tables(tables)
        )
        if rows.chance(0.05):
            new.sampling.temperature = 0.75
            new.sampling.seed = self._random.getrandbits(40)
        if rows.chance(0.04):
            rows.made["penalties"] += 1
            new.sampling.repetition_penalty = 1.5
            new.sampling.frequency_penalty = 0.5
        if rows.chance(0.1):
            sequence.prompt_top = new.prompt_top_logprobs = self._random.randint(0, 3)
        return sequence

    @staticmethod
    def _shareable(sequence: ClientSequence) -> bool:
        return (
            sequence.position > 0
            and not sequence.failed
            and all(table and 0 not in table for table in sequence.tables)
        )
