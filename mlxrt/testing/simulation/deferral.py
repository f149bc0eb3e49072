"""Masks that a simulated client sends behind their step: soon, late, twice, wrong at first, over
the stream or as a call, or never."""

from __future__ import annotations

from collections.abc import Sequence

from mlxrt_client.errors import MlxrtError as ClientError
from mlxrt_client.v1 import execution_pb2, step_pb2
from mlxrt_client.window import SentStep

from mlxrt.errors import MlxrtError
from mlxrt.testing.simulation.calls import Answer
from mlxrt.testing.simulation.masks import MaskComposer
from mlxrt.testing.simulation.steps import StepSender

_AGAIN_US = 30_000
Masks = Sequence[step_pb2.TokenMask]


class MaskSender(StepSender):
    """A client that can also send masks for steps that deferred their sampling.

    Attributes:
        masks: makes masks that must be refused.
    """

    masks: MaskComposer

    def _defer(self, step: SentStep, masks: Masks) -> None:
        """Will send the masks of a step that was sent."""
        roll = self._random.random()
        if roll < 0.4:
            self._send_masks(self._life, step, masks)
        elif roll < 0.98:
            longest_us = 5_000 if roll < 0.9 else 1_500_000
            delay_us = self._random.randint(0, longest_us)
            self._queue.after(delay_us, self._send_masks, self._life, step, masks)
        else:
            self.made["masks never sent"] += 1

    def _send_masks(self, life: int, step: SentStep, masks: Masks) -> None:
        window = self._window
        if life != self._life or window is None or step.future.done():
            return
        sent = masks
        if self._random.random() < 0.05:
            self.made["wrong masks"] += 1
            sent = self.masks.broken(masks)
        if self._unary or self._connection is None or self._random.random() < 0.25:
            self._call_with_masks(step, sent, masks)
            return
        self.made["masks on the stream"] += 1

        def refused(error: ClientError) -> None:
            self._masks_refused(error.reason, step, masks)

        data = window.sample(step.future, sent, Answer(lambda _: None, refused))
        self._connection.send(data)

    def _call_with_masks(self, step: SentStep, sent: Masks, masks: Masks) -> None:
        assert self._ref is not None
        self.made["masks by a call"] += 1
        request = execution_pb2.SampleStepRequest(
            sampling=step_pb2.DeferredSampling(
                session=self._ref, step_number=step.number, masks=sent
            )
        )

        def answered(data: bytes) -> None:
            self._answered(execution_pb2.SampleStepResponse.FromString(data).step)

        def refused(error: MlxrtError) -> None:
            self._masks_refused(error.reason.name, step, masks)

        self._call("SampleStep", request, answered, refused, alone=False)

    def _masks_refused(self, reason: str, step: SentStep, masks: Masks) -> None:
        """The step waits on; where it is refused itself, its own answer says so."""
        self.made["masks refused"] += 1
        self.reasons[reason] += 1
        if not step.future.done():
            delay_us = self._random.randint(1_000, _AGAIN_US)
            self._queue.after(delay_us, self._send_masks, self._life, step, masks)
