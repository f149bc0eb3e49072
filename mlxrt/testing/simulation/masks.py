"""Token masks of a simulated client: with the step, or later for one that defers its sampling."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from random import Random

from mlxrt_client.v1 import step_pb2, tensor_pb2

from mlxrt.testing.simulation.view import Composed, Rows

_WORD_BITS = 32
_WORD_BYTES = 4


class MaskComposer:
    """Composes masks for the sequences that a step samples.

    Args:
        made: counts.
    """

    def __init__(self, vocabulary_size: int, random: Random, made: Counter[str]) -> None:
        self._size = vocabulary_size
        self._random = random
        self._made = made
        self._all = (1 << vocabulary_size) - 1

    def mask(self, composed: Composed) -> None:
        """Masks for some steps, and a deferred sampling for some of these and a few more."""
        roll = self._random.random()
        if roll > 0.2 or not any(_sampled(composed)):
            return
        masks = [
            self._mask(sequence_id, run)
            for sequence_id, run in _sampled(composed)
            if roll < 0.17 and self._random.random() < 0.6
        ]
        if roll < 0.08:
            self._made["masks"] += len(masks)
            composed.step.masks.extend(masks)
        else:
            self._made["deferred"] += 1
            self._made["deferred masks"] += len(masks)
            composed.step.defer_sampling = True
            composed.masks = masks

    def broken(self, masks: Sequence[step_pb2.TokenMask]) -> list[step_pb2.TokenMask]:
        """Masks that must be refused: one row too many, or for nobody."""
        broken = list(masks)
        if broken and self._random.random() < 0.5:
            wrong = step_pb2.TokenMask()
            wrong.CopyFrom(broken[0])
            wrong.allowed.shape[0] += 1
            wrong.allowed.data += bytes(_WORD_BYTES * self._words)
            return [wrong, *broken[1:]]
        broken.append(self._message(1 << 30, [self._all]))
        return broken

    @property
    def _words(self) -> int:
        return -(-self._size // _WORD_BITS)

    def _mask(self, sequence_id: int, run: Rows) -> step_pb2.TokenMask:
        run.allowed = [self._row(run.drafts[i : i + 1]) for i in range(1 + len(run.drafts))]
        return self._message(sequence_id, run.allowed)

    def _row(self, draft: Sequence[int]) -> int:
        """What a row allows, as bits: half of all tokens, one, or none; most often its draft."""
        kind = self._random.random()
        if kind < 0.01:
            self._made["empty mask row"] += 1
            return 0
        allowed = self._random.getrandbits(self._size) if kind < 0.6 else 0
        allowed |= 1 << self._random.randrange(self._size)
        for token in draft:
            if self._random.random() < 0.8:
                allowed |= 1 << token
        return allowed

    def _message(self, sequence_id: int, rows: Sequence[int]) -> step_pb2.TokenMask:
        mask = step_pb2.TokenMask(sequence_id=sequence_id)
        mask.allowed.data_type = tensor_pb2.DATA_TYPE_INT32
        mask.allowed.shape.extend((len(rows), self._words))
        row_bytes = _WORD_BYTES * self._words
        mask.allowed.data = b"".join(row.to_bytes(row_bytes, "little") for row in rows)
        return mask


def _sampled(composed: Composed) -> Iterator[tuple[int, Rows]]:
    """Ids and rows of the sequences that the step samples."""
    for run in composed.decodes:
        yield run.sequence.sequence_id, run
    for item, rows in zip(composed.step.items, composed.items, strict=True):
        if item.sample and rows is not None:
            yield item.sequence_id, rows
