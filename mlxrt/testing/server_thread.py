"""A server inside this process, on a thread of its own: the quickest way to test a scheduler."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, TypeVar

from mlxrt.addresses import OFF
from mlxrt.config import Settings, load_settings
from mlxrt.engine.base import Engine
from mlxrt.exit_code import ExitCode
from mlxrt.server.app import Server
from mlxrt.server.lifecycle import ServerState
from mlxrt.server.runtime import Runtime
from mlxrt.telemetry.tracing import StepTracer
from mlxrt.testing.fake_engine import FakeEngine
from mlxrt.testing.fault_points import instrument
from mlxrt.testing.faults import Faults

T = TypeVar("T")

DEFAULTS: dict[str, Any] = {
    "address": "127.0.0.1:0", "drain_seconds": 0.0, "metrics_address": OFF,
}  # fmt: skip
"""Settings unless others are given: a free port, no waiting for sessions left open, no metrics."""


class ServerThread:
    """A server on a free port of the loopback; a context manager that waits until it serves.

    The event loop runs on the thread; nothing here but `stop` may be called from another, and the
    engine's counters may be read.

    Attributes:
        address: where it listens, in gRPC's form, once entered.
        engine: what it runs; a FakeEngine unless another was given.
        exit_code: how it ended, once left.
    """

    def __init__(
        self,
        engine: Engine | None = None,
        *,
        start_timeout_s: float = 60.0,
        faults: Faults | None = None,
        tracer: StepTracer | None = None,
        **settings: Any,
    ) -> None:
        """Prepares the server.

        Args:
            engine: not started yet; None for a FakeEngine of the default size.
            start_timeout_s: longest wait for it to serve.
            faults: what shall go wrong in it.
            tracer: makes the spans of steps, over what the settings say.
            settings: of mlxrt.config.Settings, over DEFAULTS.
        """
        self._tracer = tracer
        self.engine: Engine = engine if engine is not None else FakeEngine()
        self.address = ""
        self.exit_code: ExitCode | None = None
        self._settings: Settings = load_settings(**{**DEFAULTS, **settings})
        self._start_timeout_s = start_timeout_s
        self._faults = faults
        self._serving = threading.Event()
        self._failed = False
        self._error: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._server: Server | None = None
        self._thread = threading.Thread(target=self._run, name="mlxrt-server", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        if not self._serving.wait(self._start_timeout_s):
            raise RuntimeError(f"the server does not serve after {self._start_timeout_s} s")
        if self._error is not None or self._failed:
            self.stop()
            raise RuntimeError("the server did not start") from self._error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Drains the server and waits for its end; a server that has ended stays so."""
        if self._loop is not None and self._server is not None and self._thread.is_alive():
            with contextlib.suppress(RuntimeError):  # the loop has just ended by itself
                self._loop.call_soon_threadsafe(self._server.drain)
        self._thread.join()

    def on_loop(self, function: Callable[[Runtime], T]) -> T:
        """`function` of the server's runtime, on its event loop: the way to look at the core."""
        assert self._loop is not None and self._server is not None
        runtime = self._server.runtime
        assert runtime is not None, "the model is not loaded"

        async def look() -> T:
            return function(runtime)

        return asyncio.run_coroutine_threadsafe(look(), self._loop).result(30)

    def _run(self) -> None:
        try:
            self.exit_code = asyncio.run(self._serve())
        except BaseException as error:
            self._error = error
        finally:
            self._serving.set()

    async def _serve(self) -> ExitCode:
        self._loop = asyncio.get_running_loop()
        self._server = Server(self._settings, self.engine, tracer=self._tracer)
        if self._faults is not None:
            instrument(self._server, self.engine, self._faults)
        self._server.lifecycle.subscribe(self._on_state)
        await self._server.start()
        self.address = self._server.address
        self._on_state(self._server.lifecycle.state)
        return await self._server.wait()

    def _on_state(self, state: ServerState) -> None:
        if self.address and state is not ServerState.LOADING and not self._serving.is_set():
            self._failed = state is not ServerState.SERVING
            self._serving.set()
