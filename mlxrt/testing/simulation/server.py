"""One start of a server: the real core, dispatcher, pipeline, services and reaper; no grpc."""

from __future__ import annotations

import traceback
from collections import deque
from collections.abc import Callable
from random import Random

from mlxrt_client.v1 import execution_pb2

from mlxrt.core.model import Limits, ModelFacts
from mlxrt.core.step import StepOutcome
from mlxrt.engine.base import EngineDescription
from mlxrt.errors import MlxrtError, Reason
from mlxrt.server.dispatch import Dispatcher
from mlxrt.server.errors import encode_error
from mlxrt.server.execute_stream import StreamRegistry, sampling_refusal
from mlxrt.server.execution_service import ExecutionService
from mlxrt.server.handler import serialize
from mlxrt.server.lifecycle import Lifecycle, ServerState, draining
from mlxrt.server.pipeline import Pending, SamplingRefusedError, StepPipeline
from mlxrt.server.reaper import Reaper
from mlxrt.server.runtime import Runtime, limits_in_force
from mlxrt.server.session_service import SessionService
from mlxrt.server.step_watch import tally_steps
from mlxrt.telemetry.tallies import Tallies
from mlxrt.testing.simulation.clock import Clocks, EventQueue
from mlxrt.testing.simulation.engine import SimulatedEngine
from mlxrt.testing.simulation.history import History
from mlxrt.testing.simulation.witness import WitnessCore

Answer = Callable[[bytes | MlxrtError], None]


class _CountedDispatcher(Dispatcher):
    def waiter_count(self) -> int:
        """Steps that somebody may wait for."""
        return len(self._waiters)


class SimulatedServer:
    """Bytes in, bytes out.

    Args:
        instance: number of this start.
        on_lost: called when the engine is lost.

    Attributes:
        alive: a killed server answers nothing more.
        core: the watched core.
        engine, reaper, lifecycle: its parts.
        waiter_count: answers how many steps somebody may wait for.
        tallies: what its metrics count of steps.
    """

    def __init__(
        self, instance: int, queue: EventQueue, clocks: Clocks, random: Random, limits: Limits,
        engine: SimulatedEngine, history: History, on_lost: Callable[[], None],
    ) -> None:  # fmt: skip
        self.alive = True
        self.engine = engine
        self.lifecycle = Lifecycle()
        self.instance = instance
        self._queue = queue
        self._clocks = clocks
        self._limits = limits
        self._history = history
        self._on_lost = on_lost
        self._streams: dict[str, ServerStream] = {}
        self.runtime: Runtime
        self.core: WitnessCore
        engine.start(self)
        self.sessions = SessionService(
            self._serving, self.lifecycle, f"{instance:032x}", random.getrandbits
        )
        self.execution = ExecutionService(self._serving, StreamRegistry())
        self._rpcs: dict[str, Callable[[bytes], bytes]] = {
            "OpenSession": self.sessions.open,
            "RenewSession": self.sessions.renew,
            "ResumeSession": self.sessions.resume,
            "GetSession": self.sessions.get,
            "CloseSession": self.sessions.close,
            "AllocateBlocks": self.execution.allocate,
            "FreeBlocks": self.execution.free_blocks,
            "FreeSequences": self.execution.free_sequences,
        }
        pipeline = self.runtime.pipeline
        self._steps: dict[str, Callable[[bytes], Pending]] = {
            "Step": pipeline.begin_step,
            "Prefill": pipeline.begin_prefill,
            "Decode": pipeline.begin_decode,
            "SampleStep": pipeline.begin_sampling,
        }
        self.reaper = Reaper(self.runtime, limits.default_lease_ttl_ms, clocks.wall_ms)
        self._look()

    # ---- EngineListener ----

    def on_progress(self, fraction: float, activity: str) -> None:
        """As EngineListener."""

    def on_ready(self, facts: ModelFacts, description: EngineDescription) -> None:
        """As EngineListener."""
        limits = limits_in_force(self._limits, facts)
        self.core = WitnessCore(
            facts, limits, self.engine.model, self._history, self.instance,
            lambda: self._queue.now_us,
        )  # fmt: skip
        self.engine.core = self.core
        now_ms = self._clocks.monotonic_ms
        dispatcher = _CountedDispatcher(self.core, self.engine, now_ms, self._on_defect)
        self.waiter_count = dispatcher.waiter_count
        self.tallies = Tallies()
        dispatcher.observers.append(tally_steps(self.tallies))
        pipeline = StepPipeline(dispatcher, self.lifecycle, facts, limits)
        self.runtime = Runtime(facts, limits, self.core, dispatcher, pipeline, now_ms)
        self.lifecycle.move_to(ServerState.SERVING)

    def on_outcome(self, outcome: StepOutcome) -> None:
        """As EngineListener."""
        if self.alive:
            self.runtime.dispatcher.deliver(outcome)

    def on_lost(self, error: MlxrtError) -> None:
        """As EngineListener."""
        self.lifecycle.fail(error)
        self.runtime.dispatcher.stop(error)
        self._on_lost()

    # ---- transport ----

    def call(self, rpc: str, data: bytes, answer: Answer) -> None:
        """A unary call; `answer` hears of it once."""
        try:
            if rpc not in self._steps:
                answer(self._rpcs[rpc](data))
                return
            self._serving()
            pending = self._steps[rpc](data)
        except MlxrtError as refusal:
            self._watch_refusal(refusal)
            answer(refusal)
            return
        except Exception:
            self._history.violations.append(f"{rpc}: {traceback.format_exc()}")
            return
        pending.waiter.when_done(lambda: answer(pending.finish()))

    def open_stream(
        self, answer: Callable[[bytes], None], end: Callable[[MlxrtError], None]
    ) -> ServerStream:
        """Execute; ended at once where nothing is served."""
        stream = ServerStream(self, answer, end)
        try:
            self._serving()
        except MlxrtError as refusal:
            stream.close(refusal)
        return stream

    def kill(self) -> None:
        """Ends it at once."""
        self.alive = False
        self.engine.close()

    def drain(self) -> None:
        """Begins to refuse what is new."""
        self.lifecycle.move_to(ServerState.DRAINING)

    def close_drained(self) -> None:
        """Ends the drain: nothing is served any more."""
        self.lifecycle.closed = True
        for stream in list(self._streams.values()):
            stream.close(draining())

    def begin_execute(self, data: bytes, stream: ServerStream) -> Pending | None:
        """One message of a stream; None where it has no answer of its own."""
        return self.runtime.pipeline.begin_execute(
            data, stream.may_carry, lambda session_id: self._claim(session_id, stream)
        )

    def _claim(self, session_id: str, stream: ServerStream) -> None:
        if stream.session_id is not None:
            return
        stream.session_id = session_id
        older = self._streams.get(session_id)
        self._streams[session_id] = stream
        if older is not None:
            older.close(MlxrtError(Reason.STREAM_REPLACED, "a newer stream took over"))

    def _serving(self) -> Runtime:
        self.lifecycle.check_serving()
        return self.runtime

    def _watch_refusal(self, refusal: MlxrtError) -> None:
        if refusal.reason is Reason.INTERNAL_DEFECT:
            self._history.violations.append(f"refused with {refusal}")

    def _on_defect(self, loss: MlxrtError) -> None:
        self._history.violations.append(f"the dispatcher gave up: {loss}")

    def _look(self) -> None:
        if self.alive:
            self._queue.after(1_000 * self.reaper.look(), self._look)


class ServerStream:
    """The server's end of Execute: answers in the order of the messages.

    Attributes:
        session_id: whose steps it carries; None until the first one is accepted.
    """

    def __init__(
        self,
        server: SimulatedServer,
        answer: Callable[[bytes], None],
        end: Callable[[MlxrtError], None],
    ) -> None:
        self.session_id: str | None = None
        self._server = server
        self._answer = answer
        self._end = end
        self._answers: deque[Pending | bytes] = deque()
        self._closed = False

    def may_carry(self, session_id: str) -> bool:
        """Whether the session is the stream's."""
        return self.session_id in (None, session_id)

    def take(self, data: bytes) -> None:
        """One message of the client."""
        if self._closed or not self._server.alive:
            return
        answer: Pending | bytes | None
        try:
            answer = self._server.begin_execute(data, self)
        except SamplingRefusedError as refused:
            self._answer(sampling_refusal(refused))
            return
        except MlxrtError as refusal:
            answer = serialize(execution_pb2.ExecuteResponse(error=encode_error(refusal)))
        if answer is None:
            return
        self._answers.append(answer)
        if isinstance(answer, bytes):
            self._write()
        else:
            answer.waiter.when_done(self._write)

    def close(self, error: MlxrtError) -> None:
        """Ends the stream."""
        if not self._closed:
            self._closed = True
            self._end(error)

    def _write(self) -> None:
        while self._answers and not self._closed and self._server.alive:
            head = self._answers[0]
            if isinstance(head, Pending):
                if head.waiter.reply is None:
                    return
                head = head.finish()
            self._answers.popleft()
            self._answer(head)
