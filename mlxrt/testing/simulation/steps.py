"""The steps of a simulated client: sent over the stream or as calls, and again until there is an
answer."""

from __future__ import annotations

from functools import partial
from random import Random

from mlxrt_client.errors import MlxrtError as ClientError
from mlxrt_client.errors import error_from_message
from mlxrt_client.v1 import execution_pb2, session_pb2, step_pb2
from mlxrt_client.window import SentStep, StepWindow

from mlxrt.errors import MlxrtError
from mlxrt.server.errors import encode_error
from mlxrt.testing.simulation.calls import ATTEMPT_US, ATTEMPTS_MAX, LOST, Answer, Caller
from mlxrt.testing.simulation.clock import Event, EventQueue
from mlxrt.testing.simulation.history import Answered, Asked, History, comparable, request_digest
from mlxrt.testing.simulation.network import Connection, Network, Outcome
from mlxrt.testing.simulation.received import surprises
from mlxrt.testing.simulation.view import Composed


class StepSender(Caller):
    """A client that can send steps: the real step window over the simulated network."""

    def __init__(
        self, name: str, queue: EventQueue, network: Network, random: Random, history: History
    ) -> None:
        super().__init__(name, queue, network)
        self._random = random
        self._history = history
        self._ref: session_pb2.SessionRef | None = None
        self._forget_steps()

    def _forget_steps(self) -> None:
        self._window: StepWindow | None = None
        self._connection: Connection | None = None
        self._watch: Event | None = None
        self._attempts = 0
        self._failures = 0
        self._unary = False
        self._numbers: set[int] = set()

    def _may_send(self, inflight_max: int) -> bool:
        window = self._window
        if window is None or self._unary or len(window) >= inflight_max:
            return False
        # What is unanswered has to be sent again first.
        return self._connection is not None or not len(window)

    def _send(self, composed: Composed) -> SentStep:
        """Sends a step."""
        window = self._window
        assert window is not None
        self.made["step"] += 1
        unary = not len(window) and not self._busy and self._random.random() < 0.2
        composed.failures_before = self._failures
        answer = Answer(partial(self.on_result, composed), self.on_failure)
        sent = window.add(composed.step, answer)
        if sent.number in self._numbers:
            # Masks that are under way for a step of this number, which was refused, may reach it.
            composed.forget_masks()
        self._numbers.add(sent.number)
        step = execution_pb2.ExecuteRequest.FromString(sent.data).step
        self._asked(step)
        if unary:
            self._step_unary(step)
            return sent
        if self._connection is None:
            self._connect()
        assert self._connection is not None
        self._connection.send(sent.data)
        self._expect()
        return sent

    def _asked(self, step: step_pb2.StepRequest) -> None:
        self._history.asked.append(
            Asked(
                self._queue.now_us, self.name, step.session.session_id, step.session.epoch,
                step.step_number, request_digest(step),
            )
        )  # fmt: skip

    def _step_unary(self, step: step_pb2.StepRequest) -> None:
        self._unary = True
        rpc, data = "Step", step.SerializeToString()
        plain = step_pb2.StepRequest(
            session=step.session, step_number=step.step_number,
            decode_sequence_ids=step.decode_sequence_ids,
        )  # fmt: skip
        if step.decode_sequence_ids and plain == step:
            rpc = "Decode"
            data = execution_pb2.DecodeRequest(
                session=step.session, step_number=step.step_number,
                sequence_ids=step.decode_sequence_ids,
            ).SerializeToString()  # fmt: skip

        def answered(data: bytes) -> None:
            if rpc == "Decode":
                answer = execution_pb2.DecodeResponse.FromString(data).step
            else:
                answer = step_pb2.StepResponse.FromString(data)
            self._unary = False
            self._answered(answer)
            if self._window is not None:
                self._window.finish(answer)

        def refused(error: MlxrtError) -> None:
            self._unary = False
            if self._window is not None:
                self._window.refuse(error_from_message(encode_error(error)))

        self._call(rpc, data, answered, refused)

    def _answered(self, answer: step_pb2.StepResponse) -> None:
        assert self._ref is not None
        self.made["replayed"] += answer.replayed
        self._history.answered.append(
            Answered(
                self._queue.now_us, self.name, self._ref.session_id, answer.step_number,
                comparable(answer), not answer.HasField("error"),
            )
        )  # fmt: skip

    def on_result(self, composed: Composed, answer: step_pb2.StepResponse) -> None:
        """A step committed."""
        self.made["committed"] += 1
        # Planned behind a step that failed, it found another state than the one it was meant for.
        planned_right = composed.failures_before == self._failures
        for what in surprises(composed, answer) if planned_right else ():
            self._history.violations.append(f"{self.name}, step {answer.step_number}: {what}")
        self.made["drafts accepted"] += sum(each.accepted_draft_count for each in answer.results)
        for reason in composed.take(answer):
            self.reasons[reason] += 1
            self._synced = False

    def on_failure(self, error: ClientError) -> None:
        """A step was refused or discarded."""
        self.reasons[error.reason] += 1
        self._failures += 1
        self._synced = False
        if error.reason in LOST:
            self._lose()

    # ---- the stream ----

    def _connect(self) -> None:
        life = self._life
        self.made["connect"] += 1
        connection: list[Connection] = []

        def on_answer(data: bytes) -> None:
            if life == self._life and connection[0] is self._connection:
                self._on_answer(data)

        def on_end(why: Outcome) -> None:
            if life == self._life and connection[0] is self._connection:
                if isinstance(why, MlxrtError):
                    self.reasons[why.reason.name] += 1
                self._connection = None
                self._reconnect()

        connection.append(self._network.connect(on_answer, on_end))
        self._connection = connection[0]

    def _on_answer(self, data: bytes) -> None:
        response = execution_pb2.ExecuteResponse.FromString(data)
        kind = response.WhichOneof("message")
        self._attempts = 0
        if kind == "step":
            self._answered(response.step)
        life, window = self._life, self._window
        assert window is not None
        if not len(window) and kind != "sampling_refusal":
            self._history.violations.append(f"{self.name}: an answer without a question")
            return
        window.answer(response)
        if life == self._life:
            self._expect()

    def _expect(self) -> None:
        """Gives the stream up where the next answer does not come."""
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        if self._window is not None and len(self._window) and not self._unary:
            self._watch = self._queue.after(ATTEMPT_US, self._give_up, self._life)

    def _give_up(self, life: int) -> None:
        if life == self._life:
            if self._connection is not None:
                self._connection.close()
            self._connection = None
            self._reconnect()

    def _reconnect(self) -> None:
        """Sends what is unanswered again, as the contract says."""
        if self._window is None or self._unary or not len(self._window):
            return
        self._attempts += 1
        if self._attempts > ATTEMPTS_MAX:
            self._lose()
            return
        self._expect()
        self._queue.after(self._random.randint(1_000, 30_000), self._resend, self._life)

    def _resend(self, life: int) -> None:
        if life != self._life or self._window is None or self._connection is not None:
            return
        again = self._window.to_repeat()
        if not again:
            return
        self.made["resend"] += 1
        self._connect()
        assert self._connection is not None
        for sent in again:
            self.made["resend of masks"] += sent.sampling is not None
            for message in sent.messages():
                self._connection.send(message)
        self._expect()
