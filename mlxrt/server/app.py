"""The server, assembled: lifecycle, services, engine, drain. One event loop, no lock."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import signal
import threading
import time
from collections.abc import Callable

import grpc
import structlog
from grpc_reflection.v1alpha import reflection

from mlxrt.addresses import OFF
from mlxrt.config import Settings
from mlxrt.core.model import ModelFacts
from mlxrt.core.step import StepOutcome
from mlxrt.engine.base import Engine, EngineDescription
from mlxrt.errors import MlxrtError, Reason
from mlxrt.exit_code import ExitCode
from mlxrt.server import execution_service, health, model_service, session_service
from mlxrt.server.auth import TokenFile, TokenInterceptor
from mlxrt.server.channel_options import channel_options
from mlxrt.server.counted import CountedHandler
from mlxrt.server.dispatch import EngineEvents
from mlxrt.server.drain import Drain
from mlxrt.server.errors import defect
from mlxrt.server.execute_stream import StreamRegistry
from mlxrt.server.lifecycle import Lifecycle, ServerState, draining
from mlxrt.server.listening import bind, listen_for_scrapes
from mlxrt.server.notify import notify
from mlxrt.server.reaper import Reaper, monotonic_ms
from mlxrt.server.runtime import Runtime, build_runtime
from mlxrt.server.scrape import Observed, Scrape
from mlxrt.server.stall import StallWatch
from mlxrt.server.step_watch import log_steps
from mlxrt.server.summary import Summary
from mlxrt.server.tls import server_credentials
from mlxrt.server.tuning import tune_garbage_collector
from mlxrt.telemetry.caller import CallerInterceptor
from mlxrt.telemetry.endpoint import MetricsEndpoint
from mlxrt.telemetry.tallies import Tallies
from mlxrt.telemetry.tracing import StepTracer, make_tracer

INSTANCE_ID_BYTES = 16
STOP_GRACE_S = 1.0
"""How long calls may take to read their last answers."""
CLOSE_S = 20.0
LOST_CLOSE_S = 2.0
"""How long an engine, and a lost one, may take to close before it is left behind."""
SERVICE_NAMES = (session_service.NAME, execution_service.NAME, model_service.NAME)

_log = structlog.get_logger("mlxrt.server")
Progress = Callable[[float, str], None]


def _log_progress(fraction: float, activity: str) -> None:
    _log.info("loading", percent=round(100 * fraction), activity=activity)


class Server:
    """One server over one engine. Every method on the event loop that runs it.

    Args:
        settings: where to listen, limits, drain.
        engine: not started yet; the server starts and closes it.
        progress: hears how loading goes; by default the log does.
        now_ms: the monotonic clock that leases go by, milliseconds.
        tracer: makes the spans of steps; by default the one that `tracing` asks for.

    Raises:
        ConfigError: the token file can't be used, or tracing is not installed.

    Attributes:
        lifecycle: the server's state.
        runtime: the core and what feeds it; None until the model is loaded.
        instance_id: random, of this start.
        address: where it listens, in gRPC's form; the configured one until `start` has returned.
        health_address: where it answers probes alone; likewise, and "off" where it does not.
        metrics_address: where Prometheus scrapes; likewise.
        tallies: what is counted outside of core and engine.
    """

    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        progress: Progress = _log_progress,
        now_ms: Callable[[], int] = monotonic_ms,
        tracer: StepTracer | None = None,
    ) -> None:
        self.lifecycle = Lifecycle()
        self.runtime: Runtime | None = None
        self.instance_id = secrets.token_hex(INSTANCE_ID_BYTES)
        self.address = settings.address
        self.health_address = settings.health_address
        self.metrics_address = OFF
        self.tallies = Tallies()
        self._settings = settings
        self._limits = settings.limits.to_limits()
        self._engine = engine
        self._progress = progress
        self._now_ms = now_ms
        self._observed = Observed(engine, self.lifecycle, self.tallies)
        self._tracer = tracer or make_tracer(settings.tracing)
        self._metrics: MetricsEndpoint | None = None
        self._started_s = 0.0
        self._streams = StreamRegistry()
        self._health = health.HealthService(self.lifecycle, SERVICE_NAMES)
        self._drain = Drain(self.lifecycle, settings.drain_seconds)
        self._drain_wanted = asyncio.Event()
        self._lost = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._grpc = grpc.aio.server(
            interceptors=self._interceptors(),
            options=channel_options(self._limits.max_message_bytes),
        )
        self._probes = grpc.aio.server(options=channel_options(self._limits.max_message_bytes))

    async def start(self) -> None:
        """Listens and begins to load; returns while loading goes on.

        Raises:
            ConfigError: an address can't be bound, or a certificate can't be used.
        """
        loop = asyncio.get_running_loop()
        self._grpc.add_generic_rpc_handlers(self._handlers())
        if self._settings.reflection:
            names = (*SERVICE_NAMES, health.NAME, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, self._grpc)
        tls = self._settings.tls
        credentials = server_credentials(tls) if tls.enabled else None
        self.address = bind(self._grpc, self._settings.address, credentials)
        if self._settings.health_address != OFF:
            self._probes.add_generic_rpc_handlers((self._counted(self._health.handler()),))
            self.health_address = bind(self._probes, self._settings.health_address)
        self._metrics = await listen_for_scrapes(self._settings, Scrape(self._observed, loop))
        if self._metrics is not None:
            self.metrics_address = self._metrics.address
        await self._grpc.start()
        await self._probes.start()
        _log.info(
            "listening", address=self.address, instance_id=self.instance_id, tls=tls.enabled,
            client_certificates=tls.client_ca_file is not None,
            tokens=self._settings.token_file is not None, metrics=self.metrics_address,
        )  # fmt: skip
        self._started_s = time.monotonic()
        self._engine.start(
            EngineEvents(
                loop,
                progress=self._progress,
                ready=self._on_ready,
                outcome=self._on_outcome,
                lost=self._on_lost,
            )
        )

    def drain(self) -> None:
        """Begins the drain; a second call ends its waiting."""
        if self._drain_wanted.is_set():
            self._drain.hurry()
        self._drain_wanted.set()

    async def wait(self) -> ExitCode:
        """Serves until drained or lost, stops everything and answers the exit code."""
        wanted = [asyncio.create_task(e.wait()) for e in (self._drain_wanted, self._lost)]
        try:
            await asyncio.wait(wanted, return_when=asyncio.FIRST_COMPLETED)
            if not self._lost.is_set():
                await self._drain.run(self.runtime)
                self._lose_what_hangs()
        finally:
            for task in wanted:
                task.cancel()
        loss = self.lifecycle.loss
        await self._stop(loss)
        code = ExitCode.OK if loss is None else self._exit_code(loss)
        _log.info("stopped", exit_code=int(code))
        return code

    def _interceptors(self) -> list[grpc.aio.ServerInterceptor]:
        interceptors: list[grpc.aio.ServerInterceptor] = []
        token_file = self._settings.token_file
        if token_file is not None:
            interceptors.append(TokenInterceptor(TokenFile(token_file), self.tallies))
        if self._tracer is not None or self._logs_steps:
            interceptors.append(CallerInterceptor())
        return interceptors

    @property
    def _logs_steps(self) -> bool:
        return self._settings.log_level == "debug"

    def _counted(self, handler: grpc.GenericRpcHandler) -> grpc.GenericRpcHandler:
        return CountedHandler(handler, self.tallies)

    def _handlers(self) -> tuple[grpc.GenericRpcHandler, ...]:
        sessions = session_service.SessionService(
            self._serving_runtime, self.lifecycle, self.instance_id
        )
        execution = execution_service.ExecutionService(
            self._serving_runtime, self._streams, self.tallies
        )
        models = model_service.ModelService(
            self._serving_runtime, self._model_view, self.lifecycle, self.instance_id
        )
        services = (sessions, execution, models, self._health)
        return tuple(self._counted(service.handler()) for service in services)

    def _model_view(self) -> model_service.ModelView:
        engine: object = self._engine
        folder = engine.tokenizer_folder if isinstance(engine, model_service.HasTokenizer) else None
        return model_service.ModelView(
            self.runtime.limits if self.runtime is not None else self._limits,
            self._observed.description or EngineDescription("", "", "", ""),
            folder,
        )

    def _serving_runtime(self) -> Runtime:
        self.lifecycle.check_serving()
        if self.runtime is None:
            raise draining()
        return self.runtime

    def _on_ready(self, facts: ModelFacts, description: EngineDescription) -> None:
        if self.lifecycle.state is not ServerState.LOADING:
            return
        seen = self._observed
        seen.description, seen.load_s = description, time.monotonic() - self._started_s
        try:
            self.runtime = seen.runtime = build_runtime(
                facts, self._limits, self._engine, self.lifecycle, self._now_ms, self._on_lost,
                self.tallies, self._tracer,
            )  # fmt: skip
        except Exception as error:
            self._on_lost(defect("loading", error))
            return
        if self._logs_steps:
            self.runtime.pipeline.notes_traces = True
            self.runtime.dispatcher.observers.append(log_steps(description.attention_path))
        reaper = Reaper(self.runtime, self._limits.default_lease_ttl_ms)
        stall = StallWatch(
            self._engine,
            self.runtime.dispatcher,
            self.lifecycle,
            self._settings.stall_seconds,
        )
        loop = asyncio.get_running_loop()
        self._tasks += [
            loop.create_task(reaper.run()),
            loop.create_task(Summary(self.runtime).run()),
            loop.create_task(stall.run()),
        ]
        self.lifecycle.move_to(ServerState.SERVING)
        _log.info(
            "serving", model=facts.model_name, device=description.device,
            attention_path=description.attention_path, blas=description.blas,
            block_size=facts.block_size, blocks=[g.block_count for g in facts.groups],
            load_seconds=round(seen.load_s, 3),
        )  # fmt: skip

    def _on_outcome(self, outcome: StepOutcome) -> None:
        if self.runtime is not None:
            self.runtime.dispatcher.deliver(outcome)

    def _on_lost(self, loss: MlxrtError) -> None:
        _log.error("lost", reason=loss.reason.name, message=loss.message)
        self.lifecycle.fail(loss)
        if self.runtime is not None:
            self.runtime.dispatcher.stop(loss)
        self._lost.set()

    def _lose_what_hangs(self) -> None:
        """Gives up a device that holds a step for good, so that the drain ends."""
        if self.runtime is None or self.lifecycle.loss is not None:
            return
        if self.runtime.core.inflight_count():
            self._on_lost(MlxrtError(Reason.DEVICE_LOST, "a step did not end in the drain"))

    def _exit_code(self, loss: MlxrtError) -> ExitCode:
        """Loading says its own code in the metadata `exit_code`; MODEL unless it does. Later, the
        device is lost."""
        if self.runtime is not None:
            return ExitCode.DEVICE_LOST
        return ExitCode(int(loss.metadata.get("exit_code", ExitCode.MODEL)))

    async def _stop(self, loss: MlxrtError | None) -> None:
        for task in self._tasks:
            task.cancel()
        self._streams.close_all(loss if loss is not None else draining())
        self._health.close()
        if loss is None:
            await self._close_engine(CLOSE_S)
        await self._grpc.stop(STOP_GRACE_S)
        await self._probes.stop(None)
        if self._metrics is not None:
            await asyncio.to_thread(self._metrics.close)
        if loss is not None:
            await self._close_engine(LOST_CLOSE_S)
        if self._tracer is not None:
            await asyncio.to_thread(self._tracer.close)

    async def _close_engine(self, limit_s: float) -> None:
        """Closes the engine; one that hangs is left behind, on a daemon thread."""
        loop, closed = asyncio.get_running_loop(), asyncio.Event()

        def close() -> None:
            self._engine.close()
            with contextlib.suppress(RuntimeError):  # the loop has gone without waiting
                loop.call_soon_threadsafe(closed.set)

        threading.Thread(target=close, name="mlxrt-close", daemon=True).start()
        try:
            await asyncio.wait_for(closed.wait(), limit_s)
        except TimeoutError:
            _log.error("the engine does not close; leaving it", limit_s=limit_s)


async def serve(
    settings: Settings,
    engine: Engine,
    *,
    progress: Progress = _log_progress,
    on_listening: Callable[[str], None] | None = None,
    handle_signals: bool = True,
    prepare: Callable[[Server], None] | None = None,
) -> ExitCode:
    """Serves until SIGTERM or SIGINT has drained it or the device is lost; answers the exit code.

    Args:
        progress: hears how loading goes.
        on_listening: hears the address once calls are answered (loading may go on).
        handle_signals: take SIGTERM and SIGINT for the drain; a second one ends its waiting.
        prepare: called with the server before it starts; mlxrt.testing has a use for it.

    Raises:
        ConfigError: the address can't be bound. Exit code 2.
    """
    server = Server(settings, engine, progress)
    server.lifecycle.subscribe(_tune_when_serving)
    server.lifecycle.subscribe(notify)
    if prepare is not None:
        prepare(server)
    loop = asyncio.get_running_loop()
    signals = (signal.SIGTERM, signal.SIGINT) if handle_signals else ()
    for number in signals:
        loop.add_signal_handler(number, server.drain)
    try:
        await server.start()
        if on_listening is not None:
            on_listening(server.address)
        return await server.wait()
    finally:
        for number in signals:
            loop.remove_signal_handler(number)


def run_server(
    settings: Settings,
    engine: Engine,
    *,
    progress: Progress = _log_progress,
    on_listening: Callable[[str], None] | None = None,
    prepare: Callable[[Server], None] | None = None,
) -> ExitCode:
    """`serve` on an event loop of its own: uvloop's where it is installed. Call from the main
    thread."""
    serving = serve(
        settings, engine, progress=progress, on_listening=on_listening, prepare=prepare
    )
    try:
        import uvloop
    except ImportError:
        return asyncio.run(serving)
    code: ExitCode = uvloop.run(serving)
    return code


def _tune_when_serving(state: ServerState) -> None:
    if state is ServerState.SERVING:
        tune_garbage_collector()
