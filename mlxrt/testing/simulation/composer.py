"""Makes steps as a scheduler would, at random: who is released, who is registered, whose rows run,
under which masks; now and then one that must be refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from random import Random

from mlxrt_client.v1 import step_pb2

from mlxrt.core.model import Limits, ModelFacts
from mlxrt.testing.simulation.masks import MaskComposer
from mlxrt.testing.simulation.registrations import Registrar
from mlxrt.testing.simulation.rows import RowComposer
from mlxrt.testing.simulation.view import Composed, View


class Composer:
    """Composes steps and makes them true in the client's view.

    Args:
        expected_token: the greedy token after given ones.

    Attributes:
        made: how often each thing was done.
        masks: composes those.
    """

    def __init__(
        self, facts: ModelFacts, limits: Limits, random: Random,
        expected_token: Callable[[Sequence[int]], int],
    ) -> None:  # fmt: skip
        self._rows = RowComposer(facts, limits, random, expected_token)
        self._registrar = Registrar(self._rows)
        self.made: Counter[str] = self._rows.made
        self.masks = MaskComposer(facts.vocabulary_size, random, self.made)
        self._limits = limits
        self._random = random

    def compose(self, view: View, *, alone: bool) -> Composed | None:
        """The next step, or None where there is nothing to do; `alone` where none is in flight."""
        composed = Composed(alone=alone)
        step = composed.step
        self._release(view, step)
        free = view.free()
        sequences = list(view.sequences.values())
        self._register(view, composed, free)
        self._random.shuffle(sequences)
        named = view.named()
        for sequence in sequences[: self._limits.max_step_sequences - 1]:
            if sequence.failed or not self._chance(0.9):
                continue
            if sequence.preempted and not sequence.unsettled:
                self._rows.resume(sequence, composed, free, sequences)
            else:
                self._rows.advance(sequence, composed, free, named)
        if len(view.sequences) < self._limits.max_sequences and self._chance(0.3):
            self._registrar.register_behind(view, composed, free)
        self.masks.mask(composed)
        if self._chance(0.02):
            self._break(step)
        busy = (
            step.items or step.decode_sequence_ids or step.new_sequences
            or step.release_sequence_ids or step.block_copies
        )  # fmt: skip
        return composed if busy else None

    def _chance(self, chance: float) -> bool:
        return self._random.random() < chance

    def _register(self, view: View, composed: Composed, free: list[list[int]]) -> None:
        room = self._limits.max_sequences - 1 - len(view.sequences)
        if room > 0 and self._chance(0.4):
            if room > 1 and self._chance(0.1):
                self._registrar.queue(view, composed, 2)
            else:
                self._registrar.register(view, composed, free)

    def _release(self, view: View, step: step_pb2.StepRequest) -> None:
        for sequence in list(view.sequences.values()):
            done = sequence.failed or len(sequence.tokens) >= sequence.goal
            if (done and self._chance(0.8)) or self._chance(0.01):
                self.made["release"] += 1
                step.release_sequence_ids.append(sequence.sequence_id)
                del view.sequences[sequence.sequence_id]

    def _break(self, step: step_pb2.StepRequest) -> None:
        """Makes the step one that must be refused."""
        self.made["broken"] += 1
        match self._random.randrange(5):
            case 0:
                step.decode_sequence_ids.append(1 << 30)
            case 1:
                step.items.add(sequence_id=1 << 30, row_count=1).registered.SetInParent()
            case 2:
                step.block_copies.add(source_block_id=1, destination_block_id=1 << 20)
            case 3:
                step.new_sequences.add(sequence_id=1 << 30)
            case 4:
                step.masks.add(sequence_id=1 << 30)
