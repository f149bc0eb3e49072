"""What an engine on a CPU moves into huge pages: all weights and pools, fused or not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import pytest
import structlog

from mlxrt.engine import assembly
from mlxrt.engine.huge_pages import HugePages, collapse


@pytest.mark.parametrize("fused", ["off", "on"])
def test_weights_and_pools_are_moved_and_it_is_said(
    fused: str,
    checkpoint: Callable[..., Any],
    start_engine: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given: list[mx.array] = []
    answered: list[HugePages] = []

    def recorded(arrays: Sequence[mx.array]) -> HugePages:
        given.extend(arrays)
        answered.append(collapse(arrays))
        return answered[-1]

    monkeypatch.setattr(assembly, "collapse", recorded)
    with structlog.testing.capture_logs() as logs:
        running = start_engine(checkpoint("qwen3"), attention="native", fused=fused)
        running.engine.close()
    plan = running.engine.memory_plan
    # Fused layers keep the norms of heads, a few hundred bytes, among their rules.
    expected = plan.weight_bytes + plan.pool_bytes
    assert sum(array.nbytes for array in given) == pytest.approx(expected, rel=1e-3)
    (said,) = [entry for entry in logs if entry["event"] == "huge pages"]
    assert said["mib"] == answered[0].covered_bytes >> 20
    assert said["of_mib"] == answered[0].wanted_bytes >> 20
