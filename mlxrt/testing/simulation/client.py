"""A simulated client: the real step window over the simulated network, and every right to crash,
pause, be doubled and be taken over."""

from __future__ import annotations

from functools import partial
from random import Random

from mlxrt_client.errors import MlxrtError as ClientError
from mlxrt_client.errors import error_from_message
from mlxrt_client.v1 import execution_pb2, session_pb2, step_pb2
from mlxrt_client.window import StepWindow

from mlxrt.core.model import Limits, ModelFacts
from mlxrt.errors import MlxrtError
from mlxrt.server.errors import encode_error
from mlxrt.testing.simulation.calls import ATTEMPT_US, ATTEMPTS_MAX, LOST, RETRIED, Answer, Caller
from mlxrt.testing.simulation.clock import Event, EventQueue
from mlxrt.testing.simulation.composer import Composer
from mlxrt.testing.simulation.history import Answered, Asked, History, comparable, request_digest
from mlxrt.testing.simulation.network import Connection, Network, Outcome
from mlxrt.testing.simulation.view import Composed, View


class SimulatedClient(Caller):
    """One scheduler.

    Args:
        take_over: a session to take over, and nothing to open.

    Attributes:
        quiet: start nothing more.
        view: what it believes.
    """

    def __init__(
        self, name: str, queue: EventQueue, network: Network, random: Random,
        facts: ModelFacts, limits: Limits, history: History,
        take_over: session_pb2.SessionRef | None = None,
    ) -> None:  # fmt: skip
        super().__init__(name, queue, network)
        self.quiet = False
        self.composer = Composer(facts, limits, random)
        self._random = random
        self._facts = facts
        self._limits = limits
        self._history = history
        self._ref: session_pb2.SessionRef | None = None
        self._reset()
        queue.after(random.randint(0, 5_000), self._wake, self._life)
        if take_over is not None:
            self._resume(take_over)

    def _reset(self) -> None:
        self.view = View(len(self._facts.groups))
        self._window: StepWindow | None = None
        self._connection: Connection | None = None
        self._watch: Event | None = None
        self._attempts = 0
        self._busy = self._synced = False
        self._unary = False

    @property
    def ref(self) -> session_pb2.SessionRef | None:
        """The session, where there is one that steps go to."""
        return self._ref if self._synced else None

    # ---- life ----

    def crash(self) -> None:
        """Forgets everything but, sometimes, who it was."""
        self.made["crash"] += 1
        ref = self._ref if self._random.random() < 0.5 else None
        self._lose()
        if ref is not None and not self.quiet:
            self._resume(ref)

    def _lose(self) -> None:
        if self._connection is not None:
            self._connection.close()
        if self._watch is not None:
            self._watch.cancel()
        self._life += 1
        self._ref = None
        self._reset()
        self._queue.after(self._random.randint(1_000, 50_000), self._wake, self._life)

    def _wake(self, life: int) -> None:
        if life != self._life:
            return
        if not self.quiet or self._ref is not None:
            pause_us = self._random.randint(200, 4_000)
            if not self.quiet and self._random.random() < 0.002:
                self.made["pause"] += 1
                pause_us = self._random.randint(500_000, 6_000_000)
            self._queue.after(pause_us, self._wake, life)
        if self.quiet:
            self._leave()
        elif self._ref is None:
            self._open()
        elif self._synced:
            self._act()
        elif self._window is not None and not len(self._window) and not self._busy:
            self._sync()

    def _leave(self) -> None:
        """Closes politely or just goes."""
        if self._ref is not None and self._synced and self._random.random() < 0.5:
            request = session_pb2.CloseSessionRequest(session=self._ref)
            self._network.call("CloseSession", request.SerializeToString(), lambda outcome: None)
        self._life += 1
        self._ref = None

    # ---- sessions ----

    def _open(self) -> None:
        if self._busy:
            return
        self.made["open"] += 1

        def opened(data: bytes) -> None:
            answer = session_pb2.OpenSessionResponse.FromString(data)
            self._begin(answer.session, 1)

        request = session_pb2.OpenSessionRequest(
            request_id=self._request_id(), client_name=self.name,
            lease_ttl_ms=self._random.choice((0, 1_000, 2_000)),
        )  # fmt: skip
        self._call("OpenSession", request, opened)

    def _resume(self, ref: session_pb2.SessionRef) -> None:
        self.made["take over"] += 1

        def resumed(data: bytes) -> None:
            answer = session_pb2.ResumeSessionResponse.FromString(data)
            self._begin(answer.session, answer.next_step_number)
            self._synced = False

        request = session_pb2.ResumeSessionRequest(request_id=self._request_id(), session=ref)
        self._call("ResumeSession", request, resumed)

    def _begin(self, ref: session_pb2.SessionRef, next_number: int) -> None:
        self._ref = ref
        self._window = StepWindow(ref, next_number)
        self._synced = True

    def _sync(self) -> None:
        """Asks the server where everything stands."""
        self.made["sync"] += 1
        request = session_pb2.GetSessionRequest(
            session=self._ref, include_tables=True, include_tokens=True
        )

        def told(data: bytes) -> None:
            state = session_pb2.GetSessionResponse.FromString(data)
            if state.inflight_step_numbers or self._window is None:
                return
            self.view.rebuild(state, self._random.randint(8, 30))
            self._window.align(state.next_step_number)
            self._synced = True

        self._call("GetSession", request, told)

    # ---- what an owner does ----

    def _act(self) -> None:
        leased = sum(map(len, self.view.leased))
        total = sum(group.block_count - 1 for group in self._facts.groups)
        roll = self._random.random()
        if not self._busy and ((leased < total // 4 and roll < 0.5) or roll < 0.01):
            self._allocate()
        elif not self._busy and roll < 0.05:
            self._random.choice(
                (self._free_blocks, self._free_sequences, self._renew, self._close)
            )()
        else:
            self._step()

    def _allocate(self) -> None:
        most = self._facts.groups[0].block_count // 3
        counts = {g: self._random.randint(1, most) for g in range(len(self._facts.groups))}
        request = execution_pb2.AllocateBlocksRequest(
            session=self._ref, request_id=self._request_id(),
            counts=[{"group": g, "count": n} for g, n in counts.items()],
        )  # fmt: skip

        def leased(data: bytes) -> None:
            for table in execution_pb2.AllocateBlocksResponse.FromString(data).blocks:
                self.view.leased[table.group].update(dict.fromkeys(table.block_ids))

        self._call("AllocateBlocks", request, leased, self._refused)

    def _refused(self, error: MlxrtError) -> None:
        if error.reason.name in LOST:
            self._lose()
        elif error.reason not in RETRIED:
            self._synced = False

    def _free_blocks(self) -> None:
        free = self.view.free()
        request = execution_pb2.FreeBlocksRequest(session=self._ref, request_id=self._request_id())
        for group, ids in enumerate(free):
            some = [block for block in ids if self._random.random() < 0.3]
            if some:
                request.blocks.add(group=group, block_ids=some)
                for block in some:
                    del self.view.leased[group][block]
        self.made["free blocks"] += 1
        self._call("FreeBlocks", request, lambda data: None)

    def _free_sequences(self) -> None:
        if not self.view.sequences:
            return
        sequence = self._random.choice(list(self.view.sequences.values()))
        del self.view.sequences[sequence.sequence_id]
        request = execution_pb2.FreeSequencesRequest(
            session=self._ref, request_id=self._request_id(), sequence_ids=[sequence.sequence_id],
            free_blocks=self._random.random() < 0.5,
        )  # fmt: skip
        self.made["free sequences"] += 1

        def freed(data: bytes) -> None:
            for table in execution_pb2.FreeSequencesResponse.FromString(data).freed_blocks:
                for block in table.block_ids:
                    self.view.leased[table.group].pop(block, None)

        self._call("FreeSequences", request, freed)

    def _renew(self) -> None:
        request = session_pb2.RenewSessionRequest(session=self._ref)
        self._call("RenewSession", request, lambda data: None)

    def _close(self) -> None:
        if self._random.random() < 0.9:
            return
        self.made["close"] += 1
        request = session_pb2.CloseSessionRequest(session=self._ref)
        self._call("CloseSession", request, lambda data: self._lose(), lambda error: self._lose())

    # ---- steps ----

    def _step(self) -> None:
        window = self._window
        if window is None or self._unary or len(window) >= self._limits.max_inflight_steps:
            return
        if self._connection is None and len(window):  # to be sent again first
            return
        composed = self.composer.compose(self.view)
        if composed is None:
            return
        self.made["step"] += 1
        unary = not len(window) and not self._busy and self._random.random() < 0.2
        sent = window.add(composed.step, Answer(partial(self.on_result, composed), self.on_failure))
        step = execution_pb2.ExecuteRequest.FromString(sent.data).step
        self._asked(step)
        if unary:
            self._step_unary(step)
            return
        if self._connection is None:
            self._connect()
        assert self._connection is not None
        self._connection.send(sent.data)
        self._expect()

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
        if not composed.take(answer):
            self.reasons["NON_FINITE_LOGITS"] += 1
            self._synced = False

    def on_failure(self, error: ClientError) -> None:
        """A step was refused or discarded."""
        self.reasons[error.reason] += 1
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
        self._attempts = 0
        if response.WhichOneof("message") == "step":
            self._answered(response.step)
        life, window = self._life, self._window
        assert window is not None
        if not len(window):
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
            self._connection.send(sent.data)
        self._expect()
