"""Deadlines swept over twice the time of a step: it commits once, or the call never reached the
server."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from mlxrt_client.errors import TransportError

STEP_MS = 20
SWEEP = [each / 2 for each in range(1, 4 * STEP_MS + 1)]
"""Deadlines, ms."""


@pytest.mark.parametrize("over_stream", [False, True], ids=["unary", "stream"])
def test_a_step_commits_once_whatever_its_deadline(
    fake_rig: Callable[..., Any], over_stream: bool
) -> None:
    rig = fake_rig(step_s=STEP_MS / 1000)
    session = rig.session(over_stream=over_stream)
    late = 0
    for deadline_ms in SWEEP:
        step, committed = session.plan(), rig.committed()
        try:
            response = session.send(step, deadline_ms / 1000)
        except TransportError as error:
            assert error.code == 4
            late += 1
            state = session.state()
            known = state.next_step_number - step.step_number
            assert known in (0, 1), "GetSession says whether it was accepted"
            response = session.send(step)
        session.settle(step, response)
        assert rig.committed() == committed + 1
        rig.digest()
    assert late >= STEP_MS, "the sweep began below the time of a step"
    rig.finish()
