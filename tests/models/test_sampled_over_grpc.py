"""Sampled tokens and logprobs over gRPC: seeds hold through preemption, other batches and
replays."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from mlxrt_client import Client, Scheduler, messages
from mlxrt_client.v1 import (
    ExecutionServiceStub,
    SamplingParams,
    StepRequest,
)

from mlxrt import bundled
from mlxrt.check.numbers import run_oracle
from mlxrt.testing.server_process import ServerProcess

NEW_TOKENS = 48
BLOCK_COUNT = 24
PROMPTS = [[100 + 7 * i + j for j in range(3 + i)] for i in range(10)]


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """A server with the bundled model over a small pool that starts as NaN."""
    pool = ["--num-blocks", str(BLOCK_COUNT + 1), "--poison-pool"]
    with ServerProcess(["--model", "bundled", *pool]) as server, Client(server.address) as client:
        yield client


def _sampling(index: int) -> SamplingParams:
    return SamplingParams(
        temperature=0.9, top_p=0.95, top_k=200 if index % 2 else 0, seed=1000 + index,
        frequency_penalty=0.3 if index % 3 else 0.0, repetition_penalty=1.1,
    )  # fmt: skip


def _generate(client: Client, chosen: list[int]) -> tuple[dict[int, list[int]], int]:
    """Tokens of the chosen prompts, scheduled together, and the number of preemptions."""
    with client.open_session() as session:
        scheduler = Scheduler(
            session, client.model_info(), client.server_info().limits, step_rows_max=8
        )
        indices = {
            scheduler.add(PROMPTS[index], NEW_TOKENS, sampling=_sampling(index)): index
            for index in chosen
        }
        tokens: dict[int, list[int]] = {index: [] for index in chosen}
        for token in scheduler.run():
            assert token.token_id is not None
            tokens[indices[token.sequence_id]].append(token.token_id)
        return tokens, scheduler.statistics.preemption_count


def test_a_seed_draws_the_same_in_another_batch_and_after_preemption(client: Client) -> None:
    together, preemptions = _generate(client, list(range(len(PROMPTS))))
    assert preemptions >= 2
    for index in range(len(PROMPTS)):
        alone, none = _generate(client, [index])
        assert none == 0
        assert alone[index] == together[index]
    assert len({tuple(tokens) for tokens in together.values()}) == len(PROMPTS)


def test_a_replay_answers_the_same_and_runs_once(client: Client) -> None:
    with client.open_session() as session:
        blocks = session.allocate_blocks({0: 4})[0]
        step = StepRequest(
            session=session.ref,
            step_number=1,
            new_sequences=[messages.new_sequence(1, PROMPTS[4], {0: blocks}, _sampling(4))],
            items=[messages.chunk_item(1, len(PROMPTS[4]), sample=True)],
        )
        execution = ExecutionServiceStub(client.channel)
        first, second = execution.Step(step), execution.Step(step)
        assert not first.replayed and second.replayed
        assert first.results == second.results
        (state,) = session.state().sequences
        assert state.token_count == len(PROMPTS[4]) + 1


def test_logprobs_are_those_of_mlx_lms_logits(client: Client) -> None:
    ((tokens, logits),) = run_oracle(bundled.path(), "float32", "auto", [PROMPTS[6]], 12)
    raw = logits - np.logaddexp.reduce(logits.astype(np.float64), axis=-1, keepdims=True)
    sampling = SamplingParams(top_logprobs=3)
    with client.open_session() as session:
        blocks = session.allocate_blocks({0: 4})[0]
        step = StepRequest(
            new_sequences=[messages.new_sequence(1, PROMPTS[6], {0: blocks}, sampling)],
            items=[messages.chunk_item(1, len(PROMPTS[6]), sample=True)],
        )
        (result,) = session.step(step).results
        answers = [(result.token_ids[0], result.logprobs[0], result.top_logprobs[0])]
        for _ in range(11):
            response = session.step(StepRequest(decode_sequence_ids=[1]))
            (result,) = response.results
            answers.append((response.token_ids[0], response.logprobs[0], result.top_logprobs[0]))
    for position, (token, logprob, top) in enumerate(answers, start=len(PROMPTS[6]) - 1):
        assert token == tokens[position + 1]
        assert logprob == pytest.approx(raw[position, token], abs=1e-4)
        best = np.argsort(-raw[position], kind="stable")[:3]
        assert [entry.token_id for entry in top.entries] == best.tolist()
        assert [e.logprob for e in top.entries] == pytest.approx(raw[position, best], abs=1e-4)
        assert top.sampled_rank == 1
