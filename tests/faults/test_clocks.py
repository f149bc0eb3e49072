"""A wall clock that jumps: leases, steps and deadlines go by the monotonic one."""

from __future__ import annotations

import ast
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlxrt_client.errors import SessionLostError

Start = Callable[..., Any]
HOUR_NS = 3_600 * 10**9
TTL_MS = 1_000
SERVER = Path(__import__("mlxrt").__file__).parent


@pytest.mark.parametrize("hours", [1, -1, 24 * 365, -24 * 365])
def test_a_jump_expires_no_lease_and_costs_no_step(
    fake_rig: Start, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    rig = fake_rig(step_s=0.005)
    session = rig.session(ttl_ms=TTL_MS)
    session.advance()
    wall_ns, asked = time.time_ns, [0]

    def jumped() -> int:
        asked[0] += 1
        return wall_ns() + hours * HOUR_NS

    monkeypatch.setattr(time, "time_ns", jumped)
    end_s = time.monotonic() + 2 * TTL_MS / 1000
    while time.monotonic() < end_s:
        session.advance()
    assert asked[0] > 0, "somebody looked at the wall clock, and nothing came of it"
    assert session.retries == 0 and set(session.statuses) == {"OK"}
    rig.finish()


def test_a_wall_clock_set_back_keeps_no_dead_session_alive(
    fake_rig: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = fake_rig()
    session = rig.session(ttl_ms=TTL_MS)
    session.advance()
    wall_ns = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: wall_ns() - HOUR_NS)
    end_s = time.monotonic() + 60
    while rig.server.on_loop(lambda runtime: runtime.core.session_count()):
        assert time.monotonic() < end_s
        time.sleep(0.05)
    with pytest.raises(SessionLostError):
        session.advance()
    session.disconnect()


def test_nobody_but_the_reaper_and_the_records_reads_the_wall_clock() -> None:
    """The reaper compares it with the monotonic clock; spans carry the time of day."""
    readers = {
        f"{path.parent.name}/{path.name}"
        for folder in ("core", "server", "engine", "attention", "telemetry")
        for path in (SERVER / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
        and ast.unparse(node) in {"time.time", "time.time_ns", "datetime.now", "datetime.utcnow"}
    }
    assert readers <= {"server/reaper.py", "telemetry/tracing.py"}
    assert "server/reaper.py" in readers
