"""One run: a seed, a server, some clients, and what goes wrong between them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from random import Random

from mlxrt.core.model import Limits
from mlxrt.server.reaper import JUMP_MS
from mlxrt.testing.fake_engine import FakeEngine
from mlxrt.testing.simulation.client import SimulatedClient
from mlxrt.testing.simulation.clock import Clocks, EventQueue
from mlxrt.testing.simulation.engine import EngineFaults, SimulatedEngine
from mlxrt.testing.simulation.history import History
from mlxrt.testing.simulation.network import Network, NetworkFaults
from mlxrt.testing.simulation.server import SimulatedServer
from mlxrt.testing.simulation.validators import validate

LIMITS = Limits(
    max_step_rows=48, max_step_sequences=8, max_sequences=6, max_step_copies=16, max_sessions=8,
    max_model_length=48, min_lease_ttl_ms=1_000, max_lease_ttl_ms=10_000,
    default_lease_ttl_ms=3_000,
)  # fmt: skip
_QUIET_US = 25_000_000
"""Longer than the latest message, all retries, a lease and a grace together."""
_CHAOS_US = 40_000


@dataclass(slots=True)
class Report:
    """How a run went.

    Attributes:
        violations: empty for a good run.
        coverage: how often each thing happened.
    """

    seed: int
    events: int
    violations: list[str]
    history: History
    coverage: Counter[str]


class Simulation:
    """Everything of one seed; the same seed is the same run in every process."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.random = Random(f"mlxrt {seed}")
        self.queue = EventQueue()
        self.clocks = Clocks(self.queue)
        self.history = History()
        self.coverage: Counter[str] = Counter()
        self._template = FakeEngine(
            vocabulary_size=509, block_size=4, num_blocks=self.random.choice((24, 40)),
            windows=self.random.choice(((0,), (0, 6), (5,))), max_model_length=48,
        )  # fmt: skip
        self._network_faults, self._engine_faults = self._swarm()
        self._chaos = {
            what: self._rate(0.05) for what in
            ("kill", "drain", "sleep", "clock", "crash", "twin", "slow")
        }  # fmt: skip
        self.network = Network(self.queue, self._fork(), self._network_faults)
        self._instances = 0
        self._quiet = False
        self._servers: list[SimulatedServer] = []
        self._start()
        self.clients = [self._client(f"c{n}") for n in range(self.random.randint(1, 3))]

    def run(self, events: int) -> Report:
        """Lets `events` things happen, then calm, then looks whether everything is well."""
        self.queue.after(_CHAOS_US, self._stir)
        while self.queue.handled < events and not self.history.violations and self.queue.next():
            pass
        handled = self.queue.handled
        if not self.history.violations:
            self._calm()
        if not self.history.violations:
            self.history.violations += validate(self.history)
        self._count()
        return Report(self.seed, handled, self.history.violations, self.history, self.coverage)

    def _fork(self) -> Random:
        return Random(self.random.getrandbits(64))

    def _rate(self, most: float) -> float:
        """Off in half of the runs."""
        return self.random.choice((0.0, self.random.random() * most))

    def _swarm(self) -> tuple[NetworkFaults, EngineFaults]:
        network = NetworkFaults(
            self._rate(0.05), self._rate(0.05), self._rate(0.1), self._rate(0.03)
        )
        engine = EngineFaults(
            self._rate(0.1), self._rate(0.1), self._rate(0.004),
            self.random.choice(((100, 800), (500, 5_000), (5_000, 60_000))),
        )  # fmt: skip
        return network, engine

    # ---- server ----

    def _start(self) -> None:
        self._instances += 1
        engine = SimulatedEngine(self._template, self.queue, self._fork(), self._engine_faults)
        server = SimulatedServer(
            self._instances, self.queue, self.clocks, self._fork(), LIMITS, engine, self.history,
            self._lost,
        )  # fmt: skip
        self._servers.append(server)
        self.network.server = server

    def _lost(self) -> None:
        self._note("device lost")
        self.queue.after(self.random.randint(1_000, 200_000), self._restart, self.network.server)

    def _restart(self, old: SimulatedServer) -> None:
        if self.network.server is not old:
            return
        old.kill()
        self.network.server = None
        self.queue.after(self.random.randint(1_000, 300_000), self._start_again)

    def _start_again(self) -> None:
        if self.network.server is None:
            self._start()

    # ---- clients and chaos ----

    def _client(self, name: str, victim: SimulatedClient | None = None) -> SimulatedClient:
        return SimulatedClient(
            name, self.queue, self.network, self._fork(), self._template.facts, LIMITS,
            self.history, self._template.expected_token,
            victim.ref if victim is not None else None,
        )  # fmt: skip

    def _note(self, what: str) -> None:
        self.coverage[what] += 1
        self.history.notes.append((self.queue.now_us, what))

    def _stir(self) -> None:
        """Does what the outside world does to a server and its clients."""
        if self._quiet:
            return
        self.queue.after(self.random.randint(1_000, 2 * _CHAOS_US), self._stir)
        for what, chance in self._chaos.items():
            if self.random.random() < chance:
                self._note(what)
                getattr(self, f"_{what}")()

    def _kill(self) -> None:
        if self.network.server is not None:
            self._restart(self.network.server)

    def _drain(self) -> None:
        server = self.network.server
        if server is not None:
            server.drain()
            self.queue.after(self.random.randint(10_000, 300_000), self._end_drain, server)

    def _end_drain(self, server: SimulatedServer) -> None:
        server.close_drained()
        self.queue.after(5_000, self._restart, server)

    def _sleep(self) -> None:
        slept_ms = self.random.choice((200, 2_000, JUMP_MS + 1_000, 3_600_000))
        self.clocks.asleep_ms += slept_ms
        if slept_ms > JUMP_MS and self.network.server is not None:
            grace_ms = LIMITS.default_lease_ttl_ms
            self.network.server.core.no_expiry_before_ms = self.clocks.monotonic_ms() + grace_ms

    def _clock(self) -> None:
        self.clocks.wall_ms_ahead += self.random.choice((-3_600_000, 3_600_000))

    def _crash(self) -> None:
        self.random.choice(self.clients).crash()

    def _twin(self) -> None:
        victim = self.random.choice(self.clients)
        if victim.ref is not None and len(self.clients) < 6:
            self.clients.append(self._client(f"c{len(self.clients)}", victim))

    def _slow(self) -> None:
        """The device takes a second for each of the next steps."""
        faults = self._engine_faults
        before, faults.step_us = faults.step_us, (500_000, 1_000_000)
        self.queue.after(600_000, self._quick, before)

    def _quick(self, step_us: tuple[int, int]) -> None:
        self._engine_faults.step_us = step_us

    # ---- the end ----

    def _calm(self) -> None:
        """No more faults, no more work; leases end; nothing may be left (V7)."""
        self._quiet = True
        network, engine = self._network_faults, self._engine_faults
        network.lose = network.delay = network.double = network.cut = 0.0
        engine.fail = engine.poison = engine.lose = 0.0
        for client in self.clients:
            client.quiet = True
        self.queue.run_until(self.queue.now_us + _QUIET_US)
        server = self.network.server
        if server is None or not server.alive or self.history.violations:
            if server is None:
                self.history.violations.append("V7: no server came back")
            return
        core, facts = server.core, self._template.facts
        capacity = tuple(group.block_count - 1 for group in facts.groups)
        counters = core.counters
        core.check(
            core.free_blocks_by_group() == capacity, f"V7: free {core.free_blocks_by_group()}"
        )
        core.check(core.session_count() == 0, f"V7: {core.session_count()} sessions are left")
        core.check(core.inflight_count() == 0, "V7: a step is left")
        core.check(server.waiter_count() == 0, "V7: somebody still waits")
        core.check(
            counters.blocks_allocated == sum(counters.blocks_freed.values()),
            "P18: allocations are not frees",
        )
        commits = sum(s.committed and s.instance == server.instance for s in self.history.settled)
        core.check(counters.steps_committed == commits, "P18: committed steps")
        tallies = server.tallies
        core.check(
            sum(steps.committed for steps in tallies.steps.values()) == commits,
            "P18: committed steps as scraped",
        )
        core.check(
            sum(tallies.step_failures.values()) == counters.steps_discarded,
            "P18: discarded steps as scraped",
        )
        census = core.census()
        core.check(
            census.sequences == sum(census.leased_blocks) == sum(census.shared_blocks) == 0,
            f"P18: the census has something left: {census}",
        )
        if not self.history.violations:
            core.check_integrity()

    def _count(self) -> None:
        network = self.network
        for name in ("lost", "delayed", "doubled", "cuts"):
            self.coverage[f"message {name}"] += getattr(network, name)
        for server in self._servers:
            self.coverage["plans failed"] += server.engine.plans_failed
            self.coverage["sampled later"] += server.engine.samplings_run
            self.coverage["rows poisoned"] += server.engine.rows_poisoned
            self.coverage["sessions expired"] += server.core.counters.sessions_expired
            self.coverage["expired waiting"] += server.core.expired_waiting
            self.coverage["graces"] += server.reaper.graces
        for client in self.clients:
            self.coverage.update(client.made)
            self.coverage.update(client.composer.made)
            self.coverage.update(client.reasons)
