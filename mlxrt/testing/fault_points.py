"""Lays fault points into one assembled server.

Its parts are wrapped where they are called, so a server that nobody instruments has no point to
pass and pays nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mlxrt.core.core import Core
from mlxrt.server.app import Server
from mlxrt.server.lifecycle import ServerState
from mlxrt.server.pipeline import StepPipeline
from mlxrt.testing.faults import Faults, InjectedError, Point


def instrument(server: Server, engine: object, faults: Faults) -> None:
    """Lays the points of `faults` into a server that has not started; they are there once it
    serves."""

    def on_state(state: ServerState) -> None:
        if state is ServerState.SERVING and server.runtime is not None:
            _wrap_core(server.runtime.core, faults)
            _wrap_pipeline(server.runtime.pipeline, faults)
            _wrap_engine(engine, faults)

    server.lifecycle.subscribe(on_state)


def _wrapped(
    owner: Any, name: str, faults: Faults, before: Point | None, after: Point | None = None
) -> None:
    """Replaces one method of one object by itself with a point on either side."""
    run: Callable[..., Any] = getattr(owner, name)

    def passing(*values: Any, **named: Any) -> Any:
        if before is not None:
            faults.reach(before)
        answer = run(*values, **named)
        if after is not None:
            faults.reach(after)
        return answer

    setattr(owner, name, passing)


def _wrap_core(core: Core, faults: Faults) -> None:
    _wrapped(core, "accept", faults, Point.ACCEPT, Point.ACCEPTED)
    _wrapped(core, "finish", faults, Point.COMMIT, Point.COMMITTED)
    hand_out = core.next_plan

    def next_plan(now_ms: int) -> Any:
        if core.queued_count():
            faults.reach(Point.PLAN)
        return hand_out(now_ms)

    setattr(core, "next_plan", next_plan)  # noqa: B010


def _wrap_pipeline(pipeline: StepPipeline, faults: Faults) -> None:
    begin = pipeline._begin

    def passing(message: Any, path_map: Any, encode: Any, *rest: Any) -> Any:
        faults.reach(Point.DECODE)

        def encoder(waiter: Any, replayed: bool) -> bytes:
            faults.reach(Point.ENCODE)
            data: bytes = encode(waiter, replayed)
            faults.reach(Point.REPLY)
            return data

        return begin(message, path_map, encoder, *rest)

    setattr(pipeline, "_begin", passing)  # noqa: B010


def _wrap_engine(engine: Any, faults: Faults) -> None:
    _wrapped(engine, "submit", faults, Point.SUBMIT)
    assembled = getattr(engine, "_assembled", None)
    if assembled is not None:
        _wrap_forward(assembled.runner._forward, faults)
        return
    run = engine._runner.run

    def failing_run(plan: Any, failing: bool) -> Any:
        try:
            faults.reach(Point.DEVICE)
        except (InjectedError, MemoryError):
            failing = True
        return run(plan, failing)

    engine._runner.run = failing_run


def _wrap_forward(forward: Any, faults: Faults) -> None:
    """The engine of MLX asks a graph for its arrays to launch it, then another thread reads it."""
    build = forward.build

    def passing(*values: Any) -> Any:
        faults.reach(Point.BUILD)
        return _FaultyGraph(build(*values), faults)

    forward.build = passing


class _FaultyGraph:
    """A StepGraph with points where the engine evaluates it, waits for it and reads it."""

    def __init__(self, graph: Any, faults: Faults) -> None:
        self._graph = graph
        self._faults = faults

    def arrays(self) -> Any:
        self._faults.reach(Point.LAUNCH)
        return self._graph.arrays()

    def wait(self) -> None:
        self._faults.reach(Point.DEVICE)
        self._graph.wait()

    def read(self) -> Any:
        self._faults.reach(Point.READ)
        return self._graph.read()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._graph, name)
