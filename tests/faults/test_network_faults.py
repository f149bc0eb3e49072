"""A network that cuts, holds, delays, doubles and throttles, between a client and a real server."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from random import Random
from typing import Any

import pytest
from mlxrt_client import Client, RetryPolicy, Scheduler
from mlxrt_client.errors import SessionLostError, TransportError

from mlxrt.testing.checked_session import CheckedSession
from mlxrt.testing.fault_proxy import FaultProxy
from mlxrt.testing.oracle import FakeOracle

Start = Callable[..., Any]
TTL_MS = 1_000


def through(proxy: FaultProxy, **options: Any) -> CheckedSession:
    """An open session through the proxy."""
    session = CheckedSession(proxy.address, FakeOracle(), Random(5), **options)
    session.open()
    return session


@pytest.mark.parametrize("over_stream", [False, True], ids=["unary", "stream"])
def test_cuts_cost_nothing_but_time(fake_rig: Start, over_stream: bool) -> None:
    rig = fake_rig(step_s=0.002)
    with FaultProxy(rig.server.address) as proxy:
        session = through(proxy, over_stream=over_stream)
        stop, answered = threading.Event(), threading.Event()

        def cut() -> None:
            while not stop.wait(0.05):
                if answered.is_set():  # or a slow machine would answer nothing between two cuts
                    answered.clear()
                    proxy.cut()

        cutter = threading.Thread(target=cut)
        cutter.start()
        while session.retries < 10:
            session.advance()
            answered.set()
        stop.set()
        cutter.join()
        session.advance()
        assert session.statuses["UNKNOWN"] == 0
        session.close()
    rig.finish()


def test_the_reference_scheduler_gets_its_tokens_through_cuts(fake_rig: Start) -> None:
    rig = fake_rig(step_s=0.002)
    oracle, random = FakeOracle(), Random(3)
    prompts = [oracle.prompt(random) for _ in range(12)]
    with FaultProxy(rig.server.address) as proxy:
        retry = RetryPolicy(initial_delay_s=0.01)
        with Client(proxy.address, retry=retry) as client, client.open_session() as session:
            scheduler = Scheduler(
                session, client.model_info(), client.server_info().limits, block_count=20
            )
            ids = {scheduler.add(prompt, 30): prompt for prompt in prompts}
            tokens: dict[int, list[int | None]] = {number: [] for number in ids}
            for count, token in enumerate(scheduler.run(), 1):
                tokens[token.sequence_id].append(token.token_id)
                if count % 60 == 0:
                    proxy.cut()
        assert proxy.connections >= 5
    assert tokens == {number: oracle.after(prompt, 30) for number, prompt in ids.items()}
    rig.finish()


def replayed(rig: Any) -> int:
    """Steps answered from the store since the start."""
    return int(rig.server.on_loop(lambda runtime: runtime.core.counters.steps_replayed))


def test_doubled_connections_run_nothing_twice(
    fake_rig: Start, wait_until: Callable[..., None]
) -> None:
    rig = fake_rig()
    with FaultProxy(rig.server.address) as proxy:
        proxy.doubling = True
        session = through(proxy)
        for _ in range(50):
            session.advance()
        wait_until(lambda: replayed(rig) > 10)  # the second connection's calls reach the core
        with contextlib.suppress(SessionLostError):  # the other CloseSession may come first
            session.close()
    assert proxy.doubled > 1_000
    assert rig.committed() == 50
    rig.finish()


@pytest.mark.parametrize("direction", ["hold_up", "hold_down"])
def test_a_half_open_connection_ends_with_its_lease_at_most(
    fake_rig: Start, direction: str
) -> None:
    rig = fake_rig()
    with FaultProxy(rig.server.address) as proxy:
        session, mate = through(proxy, ttl_ms=TTL_MS), rig.session()
        session.advance()
        step = session.plan()
        setattr(proxy, direction, True)
        with pytest.raises(TransportError) as raised:
            session.send(step, timeout_s=0.3)
        assert raised.value.code == 4
        end_s = time.monotonic() + 60
        while rig.server.on_loop(lambda runtime: runtime.core.session_count()) > 1:
            mate.advance()
            assert time.monotonic() < end_s
        setattr(proxy, direction, False)
        session.connect()
        with pytest.raises(SessionLostError):
            session.send(step)
        session.disconnect()
    rig.finish()


def test_a_slow_and_narrow_network_is_only_slow(fake_rig: Start) -> None:
    rig = fake_rig()
    with FaultProxy(rig.server.address) as proxy:
        proxy.delay_s, proxy.bytes_per_s = 0.01, 100_000
        session, mate = through(proxy), rig.session()
        started_s = time.monotonic()
        for _ in range(5):
            session.advance()
        slow_s = time.monotonic() - started_s
        for _ in range(5):
            mate.advance()
        assert slow_s > 5 * 2 * 0.01
        assert session.retries == 0
        session.close()
    rig.finish()


def test_a_refused_connection_is_tried_again(fake_rig: Start) -> None:
    rig = fake_rig()
    with FaultProxy(rig.server.address) as proxy:
        session = through(proxy)
        proxy.refusing = True
        proxy.cut()
        with pytest.raises(TransportError) as raised:
            session.send(session.plan(), timeout_s=60)
        assert raised.value.code == 14
        proxy.refusing = False
        session.connect()
        session.advance()
        session.close()
    rig.finish()
