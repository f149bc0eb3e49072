"""Prompts per second: steps of whole prompts through gRPC, and mlx-lm's model in a bare loop."""

from __future__ import annotations

import statistics
import time
from contextlib import ExitStack
from dataclasses import dataclass

from mlxrt_client import Client, messages
from mlxrt_client.v1 import StepRequest

from mlxrt.bench.arms import Arm, WorkerArm
from mlxrt.bench.population import ROWS_MAX, blocks_for, prompts_for


@dataclass(frozen=True, slots=True)
class PrefillCell:
    """Prompt tokens a second, from the first request to the first tokens of all sequences."""

    sequences: int
    context: int
    grpc_prompt_tokens_per_s: float
    mlx_lm_prompt_tokens_per_s: float


class PrefillArm:
    """A session on a server that computes the same prompts again and again, unary."""

    def __init__(self, address: str, sequences: int, context: int) -> None:
        """Leases the blocks."""
        self._client = Client(address)
        self._session = self._client.open_session(client_name="mlxrt bench")
        model = self._client.model_info()
        self._prompts = prompts_for(sequences, context, model.vocabulary_size)
        self._blocks_each = blocks_for(context + 1)
        self._blocks = self._session.allocate_blocks({0: self._blocks_each * sequences})[0]
        self._next_id = 1

    def run(self, steps: int) -> float:
        """Computes all prompts `steps` times; returns the seconds it took."""
        seconds = 0.0
        for _ in range(steps):
            ids = list(range(self._next_id, self._next_id + len(self._prompts)))
            self._next_id += len(ids)
            requests = self._requests(ids)
            start = time.perf_counter()
            for request in requests:
                self._session.step(request)
            seconds += time.perf_counter() - start
            self._session.free_sequences(ids)
        return seconds

    def close(self) -> None:
        """Ends the session."""
        self._session.close()
        self._client.close()

    def _requests(self, ids: list[int]) -> list[StepRequest]:
        """As few steps as the limit of rows allows."""
        context = len(self._prompts[0])
        per_step = max(1, ROWS_MAX // context)
        requests = []
        for first in range(0, len(ids), per_step):
            step = StepRequest()
            for index in range(first, min(first + per_step, len(ids))):
                blocks = self._blocks[index * self._blocks_each :][: self._blocks_each]
                prompt = self._prompts[index]
                step.new_sequences.append(messages.new_sequence(ids[index], prompt, {0: blocks}))
                step.items.append(messages.chunk_item(ids[index], context, sample=True))
            requests.append(step)
        return requests


def bench_prefill(
    path: str, address: str, sequences: int, context: int, repeats: int, blas: str, dtype: str
) -> PrefillCell:
    """Times both in turn, warmed up."""
    arguments = [path, str(sequences), str(context), blas, dtype, "prefill"]
    with ExitStack() as stack:
        arms: list[Arm] = [
            PrefillArm(address, sequences, context),
            WorkerArm("mlxrt.bench.mlx_lm_arm", arguments),
        ]
        seconds: list[list[float]] = [[] for _ in arms]
        for arm in arms:
            stack.callback(arm.close)
            arm.run(2)
        for _ in range(repeats):
            for arm, taken in zip(arms, seconds, strict=True):
                taken.append(arm.run(1))
        rates = [round(sequences * context / statistics.median(taken), 1) for taken in seconds]
    return PrefillCell(sequences, context, *rates)
