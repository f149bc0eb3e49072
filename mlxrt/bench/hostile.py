"""`mlxrt bench hostile`: the latency of one client's steps while another does its worst.

The good client decodes over a stream, one step in flight; every token is compared with the
oracle's. Quiet and hostile spells take turns, so that a slow spell of the machine meets both.
"""

from __future__ import annotations

import os
import select
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from random import Random

from mlxrt.bench.hostile_peer import KINDS
from mlxrt.testing.checked_session import CheckedSession
from mlxrt.testing.oracle import FakeOracle, Oracle, record
from mlxrt.testing.server_process import ServerProcess

SEQUENCES = 8
TOKENS_MAX = 24
BLOCKS = 1024
FAKE_STEP_MS = 5.0
PEER_NICE = 10
"""The hostile processes yield to the server and the good client: what is measured is what the
server lets them do, and not who gets the processor."""
TTL_MS = 120_000
_BUILD_UP_S = 0.3


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured.

    Attributes:
        model: "fake", whose step takes 5 ms, or "bundled".
        spells: quiet and hostile spells of each kind.
        spell_s: seconds of one spell, at least.
        max_message_bytes: the server's limit; hostile messages are as large.
        spell_steps: steps of the good client in one spell, at least.
    """

    model: str = "fake"
    spells: int = 4
    spell_s: float = 2.0
    max_message_bytes: int = 4 << 20
    seed: int = 1
    spell_steps: int = 10


@dataclass(frozen=True, slots=True)
class Cell:
    """One kind of hostility.

    Attributes:
        ratio: p99 of hostile spells over that of quiet ones.
        server_peak_mib: resident memory of the server afterwards, its high water mark.
    """

    kind: str
    quiet_ms_p50: float
    quiet_ms_p99: float
    hostile_ms_p50: float
    hostile_ms_p99: float
    ratio: float
    steps: int
    tokens_checked: int
    server_peak_mib: float


class Peer:
    """A hostile process."""

    def __init__(self, kind: str, address: str) -> None:
        """Starts it; it does nothing yet."""
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "mlxrt.bench.hostile_peer", kind, address],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            bufsize=1, preexec_fn=_yield_processor,
        )  # fmt: skip
        self._heard()

    def say(self, word: str, meanwhile: Callable[[], object]) -> None:
        """Says "go" or "stop" and does something over and over until it obeys: to the first, by
        having done its worst for the first time."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{word}\n")
        while not select.select([self._process.stdout], [], [], 0)[0]:
            meanwhile()
        self._heard()

    def close(self) -> None:
        """Ends it."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()

    def _heard(self) -> None:
        assert self._process.stdout is not None
        if self._process.stdout.readline().strip() != "ready":
            raise RuntimeError(f"the hostile peer ended with {self._process.wait()}")


def _yield_processor() -> None:
    """In the hostile process, before it starts."""
    if hasattr(os, "sched_setscheduler"):  # who measures under a real-time class keeps it
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    os.nice(PEER_NICE)


def bench_hostile(
    kinds: Iterable[str], plan: Plan, on_cell: Callable[[Cell], None]
) -> dict[str, object]:
    """Measures each kind on a server of its own; returns the report that `--json` writes.

    Raises:
        WrongAnswerError: the good client got a wrong token.
    """
    cells = []
    for kind in kinds:
        cell = measure(kind, plan)
        on_cell(cell)
        cells.append(asdict(cell))
    facts = {"model": plan.model, "max_message_bytes": plan.max_message_bytes}
    return {**facts, "sequences": SEQUENCES, "cells": cells}


def measure(kind: str, plan: Plan) -> Cell:
    """One kind, beside the good client."""
    with ServerProcess(_arguments(plan)) as server:
        session = CheckedSession(
            server.address, _oracle(plan, server.address), Random(plan.seed), lines=SEQUENCES,
            tokens_max=TOKENS_MAX, ttl_ms=TTL_MS, over_stream=True, name="good",
        )  # fmt: skip
        peer = Peer(kind, server.address)
        try:
            session.open()
            quiet, hostile = _spells(session, peer, plan)
        finally:
            peer.close()
        session.close()
        peak_mib = _peak_mib(server)
    quiet_ms, hostile_ms = _percentiles(quiet), _percentiles(hostile)
    return Cell(
        kind, *quiet_ms, *hostile_ms, round(hostile_ms[1] / quiet_ms[1], 2),
        len(quiet) + len(hostile), session.tokens_checked, peak_mib,
    )  # fmt: skip


def _spells(
    session: CheckedSession, peer: Peer, plan: Plan
) -> tuple[list[float], list[float]]:
    quiet: list[float] = []
    hostile: list[float] = []
    _steps(session, plan.spell_s / 2)
    for _ in range(plan.spells):
        quiet += _steps(session, plan.spell_s, plan.spell_steps)
        peer.say("go", session.advance)
        _steps(session, _BUILD_UP_S)
        hostile += _steps(session, plan.spell_s, plan.spell_steps)
        peer.say("stop", session.advance)
        _steps(session, 2 * _BUILD_UP_S)
    return quiet, hostile


def _steps(session: CheckedSession, seconds: float, steps_min: int = 0) -> list[float]:
    """Decodes for that long and so many steps; answers each step's milliseconds."""
    taken: list[float] = []
    end_s = time.perf_counter() + seconds
    while (start_s := time.perf_counter()) < end_s or len(taken) < steps_min:
        session.advance()
        taken.append((time.perf_counter() - start_s) * 1e3)
    return taken


def _percentiles(values: list[float]) -> tuple[float, float]:
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return round(cuts[49], 3), round(cuts[98], 3)


def _arguments(plan: Plan) -> list[str]:
    pool = ["--num-blocks", str(BLOCKS), "--log-level", "error"]
    pool += ["--set", f"limits.max_message_bytes={plan.max_message_bytes}"]
    if plan.model == "fake":
        return ["--fake", *pool, "--set", f"fake_model.step_ms={FAKE_STEP_MS}"]
    return ["--model", plan.model, *pool, "--set", "row_buckets=[16]"]


def _oracle(plan: Plan, address: str) -> Oracle:
    if plan.model == "fake":
        return FakeOracle()
    random = Random(plan.seed)
    prompts = [random.choices(range(1000), k=6) for _ in range(16)]
    return record(address, prompts, TOKENS_MAX, BLOCKS - 1)


def _peak_mib(server: ServerProcess) -> float:
    """The server's high water mark; 0 where the system has no /proc."""
    assert server.process is not None
    try:
        with open(f"/proc/{server.process.pid}/status", encoding="utf-8") as status:
            lines = dict(line.split(":", 1) for line in status)
    except OSError:
        return 0.0
    return round(int(lines["VmHWM"].split()[0]) / 1024, 1)


__all__ = ["KINDS", "Cell", "Plan", "bench_hostile", "measure"]
