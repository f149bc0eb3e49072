"""Servers with fault points, and sessions that know every answer beforehand."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from random import Random
from typing import Any

import pytest

from mlxrt.exit_code import ExitCode
from mlxrt.server.runtime import Runtime
from mlxrt.testing import FakeEngine
from mlxrt.testing.checked_session import CheckedSession
from mlxrt.testing.faults import Faults
from mlxrt.testing.oracle import FakeOracle, Oracle
from mlxrt.testing.server_thread import ServerThread

BLOCKS = 64


class Rig:
    """A server in this process, its faults, and sessions on it."""

    def __init__(self, server: ServerThread, faults: Faults, oracle: Oracle) -> None:
        self.server, self.faults = server, faults
        self._oracle = oracle
        self._sessions: list[CheckedSession] = []

    def session(self, **options: Any) -> CheckedSession:
        """An open session; the test closes it or leaves that to `finish`."""
        session = CheckedSession(self.server.address, self._oracle, Random(7), **options)
        session.open()
        self._sessions.append(session)
        return session

    def digest(self) -> bytes:
        """Of the core, its invariants proven."""

        def look(runtime: Runtime) -> bytes:
            runtime.core.check_integrity()
            return runtime.core.digest()

        return self.server.on_loop(look)

    def committed(self) -> int:
        """Steps committed since the start."""
        return self.server.on_loop(lambda runtime: runtime.core.counters.steps_committed)

    def finish(self) -> None:
        """Closes every session and proves that nothing is left and no status was UNKNOWN."""
        for session in self._sessions:
            session.close()
            assert session.statuses["UNKNOWN"] == 0
        self._sessions.clear()
        assert self.server.on_loop(lambda runtime: runtime.holds_nothing)
        assert self.server.on_loop(lambda runtime: runtime.core.session_count()) == 0
        assert not self.server.on_loop(lambda runtime: runtime.dispatcher._waiters)

    def lose(self) -> ExitCode | None:
        """Leaves a server that has lost its device; answers how it ended."""
        for session in self._sessions:
            session.disconnect()
            assert session.statuses["UNKNOWN"] == 0
        self._sessions.clear()
        self.server.stop()
        return self.server.exit_code


@pytest.fixture
def fake_rig() -> Iterator[Callable[..., Rig]]:
    """Starts servers over the fake engine, on a thread of its own."""
    threads = set(threading.enumerate())
    with ExitStack() as stack:

        def start(*, step_s: float = 0.0, **settings: Any) -> Rig:
            faults = Faults()
            engine = FakeEngine(num_blocks=BLOCKS, threaded=True, step_s=step_s)
            server = stack.enter_context(ServerThread(engine, faults=faults, **settings))
            return Rig(server, faults, FakeOracle())

        yield start
    left = {t.name for t in set(threading.enumerate()) - threads if "mlxrt" in t.name}
    assert left <= {"mlxrt-close"}
