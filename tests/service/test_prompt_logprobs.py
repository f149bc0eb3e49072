"""Logprobs of the prompt over the wire, and several answers to one prompt."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from mlxrt_client import Client, messages, v1

from mlxrt.testing import FakeEngine
from mlxrt.testing.server_thread import ServerThread

PROMPT = [5, 9, 2, 77, 1023, 4, 4]
VOCABULARY = 4096


def described(engine: FakeEngine, length: int) -> tuple[float, int]:
    """Logprob and rank of the prompt's token at position `length`, by the fake's definition."""
    greedy = engine.expected_token(PROMPT[:length])
    distance = (np.arange(VOCABULARY) - greedy) % VOCABULARY
    logits = distance * -0.125
    token = PROMPT[length]
    return float(logits[token] - np.log(np.exp(logits).sum())), 1 + int(distance[token])


def test_each_chunk_answers_the_tokens_that_it_predicts(server: Any) -> None:
    session = server.open()
    blocks = session.allocate(4)
    fields = session.prefill_fields(1, PROMPT, blocks)
    fields["new_sequences"][0].prompt_top_logprobs = 2
    del fields["items"][:]
    session.step(new_sequences=fields["new_sequences"])
    seen = 0
    for count, sample in ((1, False), (4, False), (2, True)):
        item = {"sequence_id": 1, "row_count": count, "registered": {}, "sample": sample}
        (result,) = session.step(items=[item]).results
        prompt = result.prompt_logprobs
        assert prompt.first_position == seen + 1
        assert len(prompt.logprobs) == count - sample
        for index, logprob in enumerate(prompt.logprobs):
            wanted, rank = described(server.engine, seen + 1 + index)
            assert logprob == pytest.approx(wanted, rel=1e-5)
            assert prompt.ranks[index] == rank
            greedy = server.engine.expected_token(PROMPT[: seen + 1 + index])
            assert prompt.top_token_ids[2 * index : 2 * index + 2] == [greedy, greedy + 1]
        assert len(prompt.top_logprobs) == 2 * len(prompt.logprobs)
        seen += count
    (result,) = session.step(
        items=[{"sequence_id": 1, "row_count": 1, "last_sampled": {}, "sample": True}]
    ).results
    assert not result.HasField("prompt_logprobs")


def test_none_of_the_prompt_without_asking(server: Any) -> None:
    session = server.open()
    reply = session.step(**session.prefill_fields(1, PROMPT, session.allocate(4)))
    assert not reply.results[0].HasField("prompt_logprobs")


def test_four_answers_to_one_prompt_share_its_blocks() -> None:
    """As a scheduler does for n = 4: the prompt is computed once, whole blocks stand in four
    tables, and the block in which the answers part is copied for three of them.
    """
    engine = FakeEngine(num_blocks=64, block_size=4)
    sampling = [v1.SamplingParams(temperature=8.0, seed=seed) for seed in range(4)]
    with (
        ServerThread(engine) as server,
        Client(server.address) as client,
        client.open_session() as session,
    ):
        shared = session.allocate_blocks({0: 2})[0]
        own = [session.allocate_blocks({0: 4})[0] for _ in range(4)]
        first = messages.new_sequence(1, PROMPT, {0: [*shared, *own[0]]}, sampling[0])
        prefill = messages.chunk_item(1, len(PROMPT), sample=True)
        reply = session.step(v1.StepRequest(new_sequences=[first], items=[prefill]))
        assert reply.bucket_row_count == len(PROMPT)
        answers = [list(reply.results[0].token_ids)]
        # Positions 0 to 3 are shared; the last prompt token's row is run again in each copy.
        others = range(2, 5)
        fork = session.step(
            v1.StepRequest(
                block_copies=[
                    v1.BlockCopy(source_block_id=shared[1], destination_block_id=own[i - 1][0])
                    for i in others
                ],
                new_sequences=[
                    messages.new_sequence(
                        i, PROMPT, {0: [shared[0], *own[i - 1]]}, sampling[i - 1]
                    )
                    for i in others
                ],
                items=[
                    messages.chunk_item(i, 1, sample=True, start_position=len(PROMPT) - 1)
                    for i in others
                ],
            )
        )
        assert fork.bucket_row_count == 3
        answers += [list(result.token_ids) for result in fork.results]
        for _ in range(8):
            step = session.step(v1.StepRequest(decode_sequence_ids=[1, 2, 3, 4]))
            for answer, token in zip(answers, step.token_ids, strict=True):
                answer.append(token)
        assert len({tuple(answer) for answer in answers}) == 4
        # Each answer is that of a sequence alone with the same seed.
        session.step(v1.StepRequest(release_sequence_ids=[1, 2, 3, 4]))
        for answer, rules in zip(answers, sampling, strict=True):
            alone = messages.new_sequence(9, PROMPT, {0: [*shared, *own[0]]}, rules)
            reply = session.step(
                v1.StepRequest(
                    new_sequences=[alone],
                    items=[messages.chunk_item(9, len(PROMPT), sample=True)],
                )
            )
            tokens = list(reply.results[0].token_ids)
            while len(tokens) < len(answer):
                tokens += session.step(v1.StepRequest(decode_sequence_ids=[9])).token_ids
            assert tokens == answer
            session.step(v1.StepRequest(release_sequence_ids=[9]))
