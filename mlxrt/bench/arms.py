"""The arms of `mlxrt bench step`: each holds its sequences, context filled, and decodes on
demand."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import deque
from concurrent.futures import Future
from typing import Protocol

from mlxrt_client import Client, Session, messages
from mlxrt_client.v1 import SamplingParams, StepRequest, StepResponse

from mlxrt.bench.population import blocks_for, prompts_for


class Arm(Protocol):
    """One way to decode the same sequences."""

    def run(self, steps: int) -> float:
        """Decodes `steps` tokens for every sequence; returns the seconds it took."""

    def close(self) -> None:
        """Gives back what it holds."""


class WorkerArm:
    """An arm in a process of its own, which says "ready" and then answers lines of step counts with
    seconds."""

    def __init__(self, module: str, arguments: list[str]) -> None:
        """Starts `python -m module arguments`; waits until it is ready.

        Raises:
            RuntimeError: it ended instead.
        """
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", module, *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
        )  # fmt: skip
        said = self._read()
        if said != "ready":
            raise RuntimeError(f"{module} {' '.join(arguments)} said {said!r}, not 'ready'")

    def run(self, steps: int) -> float:
        """See Arm."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{steps}\n")
        self._process.stdin.flush()
        return float(self._read())

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


class GrpcArm:
    """A session on a server. Decodes in the packed column; all blocks are in the tables from the
    start."""

    def __init__(
        self,
        address: str,
        sequences: int,
        context: int,
        growth: int,
        *,
        sampling: SamplingParams | None = None,
    ) -> None:
        """Registers `sequences` and fills `context` positions of each, with blocks for `growth`
        more; greedy without `sampling`."""
        self._client = Client(address)
        self._session: Session = self._client.open_session(client_name="mlxrt bench")
        self.device = self._client.server_info().device
        self._ids = list(range(1, sequences + 1))
        self._sampling = sampling
        self._fill(context, growth)

    def close(self) -> None:
        """Ends the session."""
        self._session.close()
        self._client.close()

    def _fill(self, context: int, growth: int) -> None:
        model = self._client.model_info()
        rows_max = self._client.server_info().limits.max_step_rows
        blocks_each = blocks_for(context + growth)
        leased = self._session.allocate_blocks({0: blocks_each * len(self._ids)})[0]
        prompts = prompts_for(len(self._ids), context, model.vocabulary_size)
        per_step = max(1, rows_max // context)
        for first in range(0, len(self._ids), per_step):
            chosen = range(first, min(first + per_step, len(self._ids)))
            step = StepRequest()
            for index in chosen:
                table = leased[index * blocks_each : (index + 1) * blocks_each]
                step.new_sequences.append(
                    messages.new_sequence(
                        self._ids[index], prompts[index], {0: table}, sampling=self._sampling
                    )
                )
            for start in range(0, context, rows_max):
                count = min(rows_max, context - start)
                is_last = start + count == context
                for index in chosen:
                    item = messages.chunk_item(self._ids[index], count, sample=is_last)
                    step.items.append(item)
                self._session.step(step)
                step = StepRequest()

    def _decode(self) -> StepRequest:
        return StepRequest(decode_sequence_ids=self._ids)


class UnaryArm(GrpcArm):
    """One unary call per step: send, wait, send the next."""

    def run(self, steps: int) -> float:
        """See Arm."""
        start = time.perf_counter()
        for _ in range(steps):
            self._session.step(self._decode())
        return time.perf_counter() - start

    def overheads_ms(self, steps: int) -> list[float]:
        """Time of each step beside the model: its round trip less what the server says it queued,
        built, ran and read."""
        overheads = []
        for _ in range(steps):
            start = time.perf_counter()
            t = self._session.step(self._decode()).timings
            round_trip_us = (time.perf_counter() - start) * 1e6
            model_us = t.queue_us + t.build_us + t.device_us + t.sample_us
            overheads.append((round_trip_us - model_us) / 1e3)
        return overheads


class StreamArm(GrpcArm):
    """One Execute stream, open all the while as a scheduler's is, `in_flight` steps ahead."""

    def __init__(
        self,
        address: str,
        sequences: int,
        context: int,
        growth: int,
        *,
        sampling: SamplingParams | None = None,
        in_flight: int = 2,
    ) -> None:
        """As GrpcArm; then opens the stream."""
        super().__init__(address, sequences, context, growth, sampling=sampling)
        self._in_flight = in_flight
        self._stream = self._session.stream(in_flight)

    def close(self) -> None:
        """Ends stream and session."""
        self._stream.close()
        super().close()

    def run(self, steps: int) -> float:
        """See Arm."""
        inflight: deque[Future[StepResponse]] = deque()
        start = time.perf_counter()
        for _ in range(steps):
            inflight.append(self._stream.submit(self._decode()))
            if len(inflight) == self._in_flight:
                inflight.popleft().result()
        while inflight:
            inflight.popleft().result()
        return time.perf_counter() - start
