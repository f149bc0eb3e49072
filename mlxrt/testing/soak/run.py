"""The soak: its server, its clients, its proxies, and the account at the end."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from random import Random
from typing import Any

from mlxrt_client import Client, Session
from mlxrt_client.errors import ExhaustedError

from mlxrt.testing.checked_session import CheckedSession
from mlxrt.testing.fault_proxy import FaultProxy
from mlxrt.testing.oracle import FakeOracle, Oracle, record
from mlxrt.testing.server_process import ServerProcess
from mlxrt.testing.soak.faulty_client import FaultyClient
from mlxrt.testing.soak.scheduler_client import SchedulerClient
from mlxrt.testing.soak.watch import Holdings, Watch, holdings, settle

TTL_MS = 3_000
TOKENS_MAX = 24
BLOCKS = 1024
SESSIONS_MAX = 64
VICTIM_LIFE_S = 8.0
SESSION_LOST = 3
"""The exit code of a victim whose session ended before it was killed."""
SETTLE_S = 90.0
PROMPTS_RECORDED = 16
_WARM_STEPS = 200


@dataclass(frozen=True, slots=True)
class SoakPlan:
    """How long and how hard.

    Attributes:
        model: "fake" or "bundled".
        clients: those that meet faults step by step; half of them over a stream. A scheduler whose
            stream is cut and a client that is killed come on top.
        fault_rate: share of the steps that meet a fault.
        patience_s: how much longer it goes on where not every kind of fault was met yet.
    """

    model: str = "fake"
    seconds: float = 120.0
    clients: int = 4
    fault_rate: float = 0.01
    seed: int = 1
    patience_s: float = 0.0


@dataclass(slots=True)
class SoakReport:
    """What happened; `problems` is empty where every promise was kept."""

    model: str
    seconds: float = 0.0
    steps: int = 0
    tokens_checked: int = 0
    retries: int = 0
    replays: int = 0
    preemptions: int = 0
    faults: dict[str, int] = field(default_factory=dict)
    statuses: dict[str, int] = field(default_factory=dict)
    leaked_blocks: int = 0
    leaked_sessions: int = 0
    leaked_file_descriptors: int = 0
    leaked_threads: int = 0
    memory_mib: float = 0.0
    memory_growth: float = 0.0
    problems: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """For a file."""
        return asdict(self)


def soak(plan: SoakPlan) -> SoakReport:
    """Runs a server process under `plan` and answers the account."""
    report = SoakReport(plan.model)
    arguments = ["--num-blocks", str(BLOCKS), "--set", f"limits.max_sessions={SESSIONS_MAX}"]
    arguments += ["--set", "log_format=json", "--log-level", "warning", "--poison-pool"]
    if plan.model == "fake":
        arguments.append("--fake")
    else:
        # One shape of every forward: the tokens then do not depend on who shares a step.
        arguments += ["--model", plan.model, "--set", "row_buckets=[16]"]
    with ServerProcess(arguments) as server:
        _Soak(plan, server, report).run()
        code = server.stop()
        if code != 0:
            report.problems.append(f"the server ended with {code}")
        errors = [line for line in server.log.splitlines() if '"level": "error"' in line]
        report.problems += [f"the log has an error: {line[:300]}" for line in errors[:5]]
    return report


class _Soak:
    def __init__(self, plan: SoakPlan, server: ServerProcess, report: SoakReport) -> None:
        assert server.process is not None
        self._plan, self._server, self._report = plan, server, report
        self._pid = server.process.pid
        self._stopped = threading.Event()
        self._threads: list[threading.Thread] = []
        self._kills = 0

    def run(self) -> None:
        oracle = self._oracle()
        before = self._baseline(oracle)
        watch = Watch(self._pid)
        started_s = time.monotonic()
        with ExitStack() as stack:
            faulty = [self._faulty(stack, oracle, index) for index in range(self._plan.clients)]
            proxy = stack.enter_context(FaultProxy(self._server.address))
            scheduler = SchedulerClient(
                proxy, oracle, Random(f"{self._plan.seed} scheduler"), TOKENS_MAX,
                self._plan.fault_rate,
            )  # fmt: skip
            for client in faulty:
                self._begin(client.run)
            self._begin(scheduler.run)
            self._begin(self._kill_victims)
            self._stopped.wait(self._plan.seconds)
            end_s = started_s + self._plan.seconds + self._plan.patience_s
            while time.monotonic() < end_s and not self._has_met_all(faulty, scheduler):
                self._stopped.wait(1)
            self._stopped.set()
            for thread in self._threads:
                thread.join(120)
                if thread.is_alive():
                    self._report.problems.append(f"{thread.name} does not end")
        watch.stop()
        self._report.seconds = round(time.monotonic() - started_s, 1)
        self._report.memory_growth = round(watch.growth(), 4)
        self._count(faulty, scheduler)
        self._account(oracle, before)

    def _has_met_all(self, faulty: list[FaultyClient], scheduler: SchedulerClient) -> bool:
        """Whether every kind of fault was met, or something ended the run."""
        met = {kind for client in faulty for kind in client.faults}
        kinds = {kind for client in faulty for kind in client.kinds}
        replays = sum(client.session.replays for client in faulty)
        others = (self._kills, scheduler.cuts, scheduler.preemptions, replays)
        return self._stopped.is_set() or (kinds <= met and all(others))

    def _oracle(self) -> Oracle:
        if self._plan.model == "fake":
            return FakeOracle()
        random = Random(f"{self._plan.seed} prompts")
        with Client(self._server.address) as client:
            vocabulary = range(client.model_info().vocabulary_size)
        prompts = [
            random.choices(vocabulary, k=random.randint(2, 10)) for _ in range(PROMPTS_RECORDED)
        ]
        return record(self._server.address, prompts, TOKENS_MAX, BLOCKS - 1)

    def _session(self, address: str, oracle: Oracle, index: int) -> CheckedSession:
        return CheckedSession(
            address, oracle, Random(f"{self._plan.seed} {index}"), ttl_ms=TTL_MS,
            tokens_max=TOKENS_MAX, over_stream=index % 2 == 1, name=f"soak {index}",
        )  # fmt: skip

    def _baseline(self, oracle: Oracle) -> Holdings:
        """What the server holds after it has served as many connections as it will."""
        sessions = [
            self._session(self._server.address, oracle, index)
            for index in range(self._plan.clients + 2)
        ]
        for session in sessions:
            session.open()
        for _ in range(_WARM_STEPS):
            for session in sessions:
                session.advance()
        held = holdings(self._pid)
        for session in sessions:
            session.close()
        time.sleep(1)
        # Those threads of gRPC's that the load brought are no leak.
        return replace(held, file_descriptors=holdings(self._pid).file_descriptors)

    def _faulty(self, stack: ExitStack, oracle: Oracle, index: int) -> FaultyClient:
        proxy = stack.enter_context(FaultProxy(self._server.address))
        random = Random(f"{self._plan.seed} {index} faults")
        session = self._session(proxy.address, oracle, index)
        return FaultyClient(session, proxy, random, self._plan.fault_rate)

    def _begin(self, run: Callable[[threading.Event], None]) -> None:
        def body() -> None:
            try:
                run(self._stopped)
            except Exception as error:
                where = traceback.extract_tb(error.__traceback__)[-1]
                self._report.problems.append(
                    f"{type(error).__name__}: {error} ({where.name}, {where.lineno})"
                )
                self._stopped.set()

        thread = threading.Thread(target=body, name=f"soak-{len(self._threads)}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _kill_victims(self, stopped: threading.Event) -> None:
        """Starts a client, kills it in mid step, and starts the next."""
        command = [sys.executable, "-P", "-m", "mlxrt.testing.soak.victim", self._server.address]
        while not stopped.is_set():
            victim = subprocess.Popen(
                [*command, str(TTL_MS), "3", "4", "5"], stdout=subprocess.PIPE, text=True
            )
            assert victim.stdout is not None
            said = victim.stdout.readline()
            stopped.wait(VICTIM_LIFE_S)
            ended = victim.poll()
            victim.kill()
            victim.wait()
            victim.stdout.close()
            if ended == SESSION_LOST:  # starved on a busy machine; the others judge leases
                continue
            if said.strip() != "steps" or ended is not None:
                raise RuntimeError(f"the client to be killed ended by itself: {ended}")
            self._kills += 1

    def _count(self, faulty: list[FaultyClient], scheduler: SchedulerClient) -> None:
        report = self._report
        faults, statuses = Counter[str](), Counter[str]()
        for client in faulty:
            faults.update(client.faults)
            statuses.update(client.session.statuses)
            report.steps += client.steps
            report.tokens_checked += client.session.tokens_checked
            report.retries += client.session.retries
            report.replays += client.session.replays
        report.tokens_checked += scheduler.tokens_checked
        report.preemptions = scheduler.preemptions
        report.faults = {**faults, "scheduler cut": scheduler.cuts, "client killed": self._kills}
        report.statuses = dict(statuses)
        if statuses["UNKNOWN"]:
            report.problems.append(f"{statuses['UNKNOWN']} calls ended with UNKNOWN")

    def _account(self, oracle: Oracle, before: Holdings) -> None:
        """What is left once all clients are gone and every lease is over."""
        report = self._report
        time.sleep(2 * TTL_MS / 1000)
        probe = CheckedSession(self._server.address, oracle, Random(0), lines=1)
        end_s = time.monotonic() + SETTLE_S
        while True:  # a server that was kept from its work ends leases later
            probe.open()
            free = probe.send(probe.plan()).free_blocks[0].count
            held = sum(len(table.block_ids) for table in probe.state().leased_blocks)
            report.leaked_blocks = BLOCKS - 1 - free - held
            probe.call_close()
            if not report.leaked_blocks or time.monotonic() > end_s:
                break
            time.sleep(0.5)
        probe.disconnect()
        report.leaked_sessions = SESSIONS_MAX - self._sessions_free()
        now = settle(self._pid, before, SETTLE_S)
        report.leaked_file_descriptors = now.leaked_file_descriptors(before)
        report.leaked_threads = now.leaked_threads(before)
        report.memory_mib = round(now.memory_bytes / 2**20, 1)
        for name in ("blocks", "sessions", "file_descriptors", "threads"):
            if count := getattr(report, f"leaked_{name}"):
                report.problems.append(f"{count} {name.replace('_', ' ')} leaked")

    def _sessions_free(self) -> int:
        """Sessions that can be opened."""
        with Client(self._server.address) as client:
            opened: list[Session] = []
            with contextlib.suppress(ExhaustedError):
                while len(opened) < SESSIONS_MAX:
                    opened.append(client.open_session(lease_ttl_ms=TTL_MS))
            for session in opened:
                session.close()
            return len(opened)
