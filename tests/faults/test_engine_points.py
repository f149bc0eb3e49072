"""The points inside MLX's engine, each with a failure, an allocation that fails and a delay."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any

import pytest
from mlxrt_client.errors import StepDiscardedError, TransportError

from mlxrt.config import load_settings
from mlxrt.launch import make_engine
from mlxrt.testing.checked_session import CheckedSession
from mlxrt.testing.faults import ENGINE_POINTS, Fault, Faults, FaultSpec, Point
from mlxrt.testing.oracle import record
from mlxrt.testing.server_thread import ServerThread

# Tests that run before may have bound MLX to the BLAS of its wheel.
SETTINGS: dict[str, Any] = {
    "model": "bundled",
    "num_blocks": 64,
    "row_buckets": (16,),
    "blas": "reference",
}
PROMPTS = [[11, 12, 13], [400, 2], [7, 8, 9, 10, 11], [1000, 900, 800]]
TOKENS_MAX = 12
UNTIL_WOKEN_MS = 300_000
DEADLINE_S = 0.1


@pytest.fixture(scope="module")
def bundled() -> Iterator[Any]:
    """A server over the bundled model, its faults, and what it answers undisturbed."""
    faults = Faults()
    engine = make_engine(load_settings(**SETTINGS), poison_pool=True)
    with ServerThread(engine, faults=faults, **SETTINGS) as server:
        yield server, faults, record(server.address, PROMPTS, TOKENS_MAX, block_count=16)


@pytest.mark.parametrize("fault", [Fault.EXCEPTION, Fault.MEMORY, Fault.DELAY])
@pytest.mark.parametrize("point", ENGINE_POINTS)
def test_a_fault_in_the_engine_stays_in_its_step(bundled: Any, point: Point, fault: Fault) -> None:
    server, faults, oracle = bundled
    mate, session = (
        CheckedSession(server.address, oracle, Random(seed), tokens_max=TOKENS_MAX)
        for seed in (1, 2)
    )
    for each in (mate, session):
        each.open()
    for each in (mate, session, session):
        each.advance()
    before, struck = session.state(), len(faults.struck)
    faults.plan(FaultSpec(point, fault, faults.hits[point] + 1, UNTIL_WOKEN_MS))
    step = session.plan()
    if fault is Fault.DELAY:
        while len(faults.struck) == struck:  # a call may be over before it is there
            with pytest.raises(TransportError):
                session.send(step, timeout_s=DEADLINE_S)
        faults.wake()
        session.settle(step, session.send(step))
    else:
        with pytest.raises(StepDiscardedError) as raised:
            session.send(step)
        assert raised.value.reason == "EXECUTION_FAILED"
        assert session.state().sequences == before.sequences
        session.resync()
    assert [spec.point for spec in faults.struck[struck:]] == [point]
    for each in (session, mate) * TOKENS_MAX:
        each.advance()
    for each in (session, mate):
        each.close()
        assert each.statuses["UNKNOWN"] == 0
    assert server.on_loop(lambda runtime: runtime.holds_nothing)
    assert server.on_loop(lambda runtime: runtime.core.session_count()) == 0
