"""Two minutes of clients that meet faults, on a real server process; `-m soak` selects them.

`SOAK_SECONDS` sets how long each takes; `python -m mlxrt.testing.soak --seconds 1800` is the
long one.
"""

from __future__ import annotations

import os
import sys

import pytest

from mlxrt.testing.oracle import FakeOracle
from mlxrt.testing.soak import SoakPlan, run, soak

SECONDS = float(os.environ.get("SOAK_SECONDS", "60"))
PATIENCE_S = 600.0
"""On a slow machine it takes longer until each fault was met."""
GROWTH_MAX = 0.05
"""Of resident memory in the second half. Half a minute can't show one part in a hundred: the long
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
    assert report.resident_growth < GROWTH_MAX
    assert report.tokens_checked > report.steps > 0
    assert report.replays > 0 and report.preemptions > 0 and report.retries > 0
    assert report.faults["client killed"] > 0 and report.faults["scheduler cut"] > 0
    kinds = {"cut", "deadline", "cancel", "twice", "half open", "invalid", "take over"}
    assert kinds | {"abandon", "close"} <= set(report.faults)


def test_a_wrong_token_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The soak can fail: an oracle of another model disagrees at once."""
    class Wrong(FakeOracle):
        def after(self, prompt: tuple[int, ...], count: int) -> list[int]:
            return [*super().after(prompt, count)[:-1], 1]

    monkeypatch.setattr(run, "FakeOracle", Wrong)
    with pytest.raises(AssertionError, match=r"token .* is"):
        soak(SoakPlan("fake", 1.0, clients=1))
