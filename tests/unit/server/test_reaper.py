"""Expiry by an injected clock: leases, late looks, machines that slept."""

from __future__ import annotations

from mlxrt.core.model import Limits
from mlxrt.server.lifecycle import Lifecycle
from mlxrt.server.reaper import (
    JUMP_MS,
    LATE_MAX_MS,
    LATE_MS,
    LOOK_INTERVAL_MIN_MS,
    LOOK_INTERVAL_MS,
    Reaper,
)
from mlxrt.server.runtime import Runtime, build_runtime
from mlxrt.testing import FakeEngine

TTL_MS = 2_000
GRACE_MS = 30_000


class Bench:
    """A runtime whose monotonic and wall clock are set by hand."""

    def __init__(self) -> None:
        self.now_ms = 1_000_000
        self.wall_ms = 5_000_000
        engine = FakeEngine(num_blocks=16)
        self.runtime: Runtime = build_runtime(
            engine.facts, Limits(), engine, Lifecycle(), lambda: self.now_ms, self._defect
        )
        self.reaper = Reaper(self.runtime, GRACE_MS, lambda: self.wall_ms)
        self.runtime.core.open_session(
            "r", TTL_MS, "", session_id="a", session_seed=0, now_ms=self.now_ms
        )

    def _defect(self, error: Exception) -> None:
        raise error

    def pass_ms(self, milliseconds: int) -> int:
        """Lets both clocks run, then looks; answers the wait until the next look."""
        self.now_ms += milliseconds
        self.wall_ms += milliseconds
        return self.reaper.look()

    @property
    def sessions(self) -> int:
        return self.runtime.core.session_count()


def test_a_session_lives_to_the_end_of_its_lease() -> None:
    bench = Bench()
    assert bench.pass_ms(0) == LOOK_INTERVAL_MS
    assert bench.pass_ms(1_000) == LOOK_INTERVAL_MS
    assert bench.pass_ms(999) == LOOK_INTERVAL_MIN_MS
    assert bench.sessions == 1
    bench.pass_ms(LOOK_INTERVAL_MIN_MS)
    assert bench.sessions == 0 and bench.reaper.graces == 0
    assert bench.pass_ms(10) == LOOK_INTERVAL_MS


def test_a_late_look_gives_a_grace_and_no_more() -> None:
    bench = Bench()
    bench.pass_ms(0)
    bench.pass_ms(LOOK_INTERVAL_MS + JUMP_MS)
    assert bench.reaper.graces == 1 and bench.sessions == 1
    for _ in range(GRACE_MS // 1_000 - 1):
        bench.pass_ms(1_000)
    assert bench.sessions == 1
    bench.pass_ms(1_000)
    assert bench.sessions == 0 and bench.reaper.graces == 1


def test_a_sleep_that_the_monotonic_clock_missed() -> None:
    bench = Bench()
    bench.pass_ms(1_500)
    bench.wall_ms += 3_600_000
    bench.pass_ms(600)
    assert bench.reaper.graces == 1 and bench.sessions == 1


def test_a_wall_clock_set_back_changes_nothing() -> None:
    bench = Bench()
    bench.pass_ms(1_000)
    bench.wall_ms -= 3_600_000
    bench.pass_ms(1_100)
    assert bench.reaper.graces == 0 and bench.sessions == 0


def test_a_look_that_is_a_little_late_gives_back_what_it_was_late_by() -> None:
    bench = Bench()
    bench.pass_ms(1_000)
    assert bench.pass_ms(LOOK_INTERVAL_MS + 1_300) == LOOK_INTERVAL_MS
    assert bench.sessions == 1, "its renewal may be unread"
    bench.pass_ms(1_000)
    assert bench.sessions == 1
    bench.pass_ms(300)
    assert bench.sessions == 0 and bench.reaper.graces == 0


def test_looks_that_are_always_late_end_leases_too() -> None:
    bench = Bench()
    began_ms, wait_ms = bench.now_ms, bench.pass_ms(0)
    while bench.sessions:
        wait_ms = bench.pass_ms(wait_ms + LATE_MS + 50)
        assert bench.now_ms - began_ms < TTL_MS + LATE_MAX_MS + 3 * LOOK_INTERVAL_MS
    assert bench.now_ms - began_ms > TTL_MS + LATE_MAX_MS / 2, "what was late was given back"
    assert bench.reaper.graces == 0
