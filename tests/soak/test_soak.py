"""Two minutes of clients that meet faults, on a real server process; `-m soak` selects them.

`SOAK_SECONDS` sets how long each takes; `python -m mlxrt.testing.soak --seconds 1800` is the
long one.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace

import pytest

from mlxrt.testing.oracle import FakeOracle
from mlxrt.testing.server_process import ServerProcess
from mlxrt.testing.soak import SoakPlan, run, soak
from mlxrt.testing.soak.watch import GRPC_THREADS_SLACK, Holdings, holdings

SECONDS = float(os.environ.get("SOAK_SECONDS", "60"))
PATIENCE_S = 600.0
"""On a slow machine it takes longer until each fault was met."""
GROWTH_MAX = 0.05
"""Of its memory in the second half. Half a minute can't show one part in a hundred: the long
run does."""

pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it reads /proc"),
]


@pytest.mark.parametrize("model", ["fake", "bundled"])
def test_faults_all_the_while_break_nothing(model: str) -> None:
    report = soak(SoakPlan(model, SECONDS, patience_s=PATIENCE_S))
    assert report.problems == []
    assert report.statuses.get("UNKNOWN", 0) == 0
    assert report.memory_growth < GROWTH_MAX
    assert report.tokens_checked > report.steps > 0
    assert report.replays > 0 and report.preemptions > 0 and report.retries > 0
    assert report.faults["client killed"] > 0 and report.faults["scheduler cut"] > 0
    kinds = {"cut", "deadline", "cancel", "twice", "half open", "invalid", "take over"}
    assert kinds | {"abandon", "close"} <= set(report.faults)


def test_a_leaked_thread_is_found() -> None:
    """Ours to the last one; of gRPC's those that its pool does not account for."""
    before = Holdings(file_descriptors=9, threads=3, grpc_threads=6, memory_bytes=0)
    assert replace(before, grpc_threads=6 + GRPC_THREADS_SLACK).leaked_threads(before) == 0
    assert replace(before, grpc_threads=7 + GRPC_THREADS_SLACK).leaked_threads(before) == 1
    assert replace(before, threads=4).leaked_threads(before) == 1
    assert replace(before, file_descriptors=10).leaked_file_descriptors(before) == 1


def test_threads_are_told_apart() -> None:
    with ServerProcess(["--fake", "--num-blocks", "8"]) as server:
        assert server.process is not None
        held = holdings(server.process.pid)
    assert held.threads >= 1 and held.grpc_threads >= 2


def test_a_wrong_token_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The soak can fail: an oracle of another model disagrees at once."""
    class Wrong(FakeOracle):
        def after(self, prompt: tuple[int, ...], count: int) -> list[int]:
            return [*super().after(prompt, count)[:-1], 1]

    monkeypatch.setattr(run, "FakeOracle", Wrong)
    with pytest.raises(AssertionError, match=r"token .* is"):
        soak(SoakPlan("fake", 1.0, clients=1))
