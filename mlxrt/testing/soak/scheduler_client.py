"""A client of the soak: the reference scheduler, two steps in flight over a stream that is cut."""

from __future__ import annotations

import threading
from random import Random

from mlxrt_client import Client, RetryPolicy, Scheduler

from mlxrt.testing.checked_session import expect
from mlxrt.testing.fault_proxy import FaultProxy
from mlxrt.testing.oracle import Oracle

_PROMPTS = 8
_BLOCKS = 12
"""Fewer than eight prompts need at once, so that some are preempted."""


class SchedulerClient:
    """Generates for batches of prompts, a session each.

    Attributes:
        cuts: connections cut on purpose.
        tokens_checked: tokens compared.
        preemptions: tables taken away.
    """

    def __init__(
        self, proxy: FaultProxy, oracle: Oracle, random: Random, tokens_max: int, fault_rate: float
    ) -> None:
        self.cuts = self.tokens_checked = self.preemptions = 0
        self._proxy = proxy
        self._oracle, self._random = oracle, random
        self._tokens_max = tokens_max
        self._fault_rate = fault_rate

    def run(self, stopped: threading.Event) -> None:
        """Generates until stopped."""
        retry = RetryPolicy(initial_delay_s=0.01, maximum_delay_s=0.2)
        with Client(self._proxy.address, retry=retry) as client:
            while not stopped.is_set():
                self._batch(client)

    def _batch(self, client: Client) -> None:
        prompts = [self._oracle.prompt(self._random) for _ in range(_PROMPTS)]
        with client.open_session(lease_ttl_ms=5_000, client_name="scheduler") as session:
            scheduler = Scheduler(
                session, client.model_info(), client.server_info().limits, block_count=_BLOCKS,
                step_rows_max=16,
            )  # fmt: skip
            wanted = {scheduler.add(prompt, self._tokens_max): prompt for prompt in prompts}
            got: dict[int, list[int | None]] = {number: [] for number in wanted}
            for token in scheduler.run():
                got[token.sequence_id].append(token.token_id)
                if self._random.random() < self._fault_rate / 2:
                    self._proxy.cut()
                    self.cuts += 1
            for number, prompt in wanted.items():
                right = list(self._oracle.after(prompt, self._tokens_max))
                expect(got[number] == right, f"after {prompt} come {right}, not {got[number]}")
                self.tokens_checked += len(right)
            self.preemptions += scheduler.statistics.preemption_count
