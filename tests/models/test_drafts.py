"""Drafts through core and engine: tokens are those of a run without them, whatever was guessed."""

from __future__ import annotations

import random
from collections.abc import Iterator

import mlx.core as mx
import numpy as np
import pytest

from mlxrt.core.model import Limits
from mlxrt.core.sampling import GREEDY, Sampling
from mlxrt.core.step import Item, NewSequence, TokenSource
from mlxrt.engine.engine_config import EngineConfig
from mlxrt.engine.mlx_engine import MlxEngine
from mlxrt.testing.local_runner import LocalRunner

PROMPT = [4, 8, 15, 16, 23, 42]
COUNT = 24
RULES = {
    "greedy": GREEDY,
    "temperature": Sampling(temperature=1.1, top_p=0.9),
    "penalties": Sampling(repetition_penalty=1.4, frequency_penalty=0.8, presence_penalty=0.4),
    "drawn penalties": Sampling(temperature=0.8, frequency_penalty=1.5, logit_bias=((5, 3.0),)),
}


@pytest.fixture(params=["gather", "native"])
def local(request, checkpoint) -> Iterator[LocalRunner]:
    """A runner over a random model on either path; its pool starts as NaN."""
    config = EngineConfig(
        model=str(checkpoint("qwen3")), attention=request.param, block_size=4, num_blocks=256,
        max_model_length=128, poison_pool=True,
    )  # fmt: skip
    runner = LocalRunner(MlxEngine(config), Limits(max_model_length=128))
    yield runner
    runner.close()


def start(local: LocalRunner, sequence_id: int, rules: Sampling) -> int:
    """Prefills a sequence; answers its first token."""
    reply = local.run(
        new_sequences=[NewSequence(sequence_id, PROMPT, {0: local.allocate(16)}, rules, seed=77)],
        items=[Item(sequence_id, len(PROMPT), source=TokenSource.REGISTERED, sample=True)],
    )
    return reply.items[0].row.token


def verify(sequence_id: int, drafts: list[int]) -> Item:
    return Item(
        sequence_id, 1, source=TokenSource.LAST_SAMPLED, sample=True, draft_tokens=drafts
    )


def plain(local: LocalRunner, rules: Sampling) -> list[int]:
    """The tokens of a run without drafts."""
    tokens = [start(local, 1, rules)]
    while len(tokens) < COUNT:
        tokens += local.run(decode_ids=[1]).token_ids
    local.run(releases=[1])
    return tokens


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("skill", [0.0, 0.7, 1.0])
def test_tokens_with_drafts_are_those_without(local, name, skill, make_oracle, checkpoint) -> None:
    rules = RULES[name]
    wanted = plain(local, rules)
    if rules is GREEDY:
        oracle = make_oracle(checkpoint("qwen3")).greedy(PROMPT, COUNT)
        assert wanted == oracle[len(PROMPT) :]
    guess = random.Random(f"{name} {skill}")
    tokens = [start(local, 2, rules)]
    steps = accepted = 0
    while len(tokens) < COUNT:
        truth = wanted[len(tokens) :][:5]
        drafts = [t if guess.random() < skill else (t + 1) % 64 for t in truth]
        reply = local.run(items=[verify(2, drafts)])
        row = reply.items[0].row
        drawn = [each.token for each in row.accepted]
        assert drawn == drafts[: len(drawn)]
        tokens += [*drawn, row.token]
        assert reply.items[0].position == len(PROMPT) + len(tokens) - 1
        assert reply.bucket_row_count == 1 + len(drafts)
        steps, accepted = steps + 1, accepted + len(drawn)
    assert tokens[:COUNT] == wanted
    counters = local._engine.counters()
    assert counters.accepted_drafts == accepted
    assert counters.drafts >= accepted
    assert counters.async_evals == counters.steps
    assert (counters.attend_native > 0) == (local.description.attention_path == "native")
    assert {0.0: steps == COUNT - 1, 0.7: 1 < steps < COUNT - 1, 1.0: steps == 4}[skill]


def test_drafts_ride_with_decodes_and_chunks_and_two_steps_in_flight(local) -> None:
    """Sequence 1 verifies drafts in every other step, sequence 2 decodes in each, two in flight."""
    wanted = plain(local, GREEDY)
    drafted, decoded = [start(local, 1, GREEDY)], [start(local, 2, GREEDY)]
    local.run(new_sequences=[NewSequence(3, PROMPT * 4, {0: local.allocate(16)})])
    for position in range(0, 20, 4):
        drafts = [*wanted[len(drafted) :][:2], 63]
        chunk = Item(3, 2, position, TokenSource.REGISTERED)
        local.submit(decode_ids=[2], items=[verify(1, drafts), chunk])
        local.submit(decode_ids=[2], items=[Item(3, 2, source=TokenSource.REGISTERED)])
        first = local.finish()
        row = first.items[0].row
        drafted += [*(each.token for each in row.accepted), row.token]
        decoded += [*first.token_ids, *local.finish().token_ids]
        assert len(row.accepted) >= 2
    assert drafted == wanted[: len(drafted)]
    assert decoded == wanted[: len(decoded)]
    assert len(drafted) >= 16


def test_drafts_behind_a_token_that_is_still_on_the_device(local) -> None:
    wanted = plain(local, RULES["penalties"])
    tokens = [start(local, 1, RULES["penalties"])]
    local.submit(decode_ids=[1])
    local.submit(items=[verify(1, wanted[2:5])])
    tokens += local.finish().token_ids
    row = local.finish().items[0].row
    assert [*tokens, *(each.token for each in row.accepted), row.token] == wanted[:6]


def test_logprobs_of_accepted_drafts_are_those_of_a_plain_run(local) -> None:
    for processed in (False, True):
        rules = Sampling(
            temperature=0.9, top_k=8, top_logprobs=3, processed_logprobs=processed
        )
        start(local, 1, rules)
        singles = []
        for _ in range(4):
            reply = local.run(items=[verify(1, [])])
            singles.append(reply.items[0].row)
        start(local, 2, rules)
        row = local.run(items=[verify(2, [each.token for each in singles[:3]])]).items[0].row
        rows = [*row.accepted, row]
        assert [each.token for each in rows] == [each.token for each in singles]
        for found, wanted in zip(rows, singles, strict=True):
            assert found.logprob == pytest.approx(wanted.logprob, abs=1e-5)
            assert [t for t, _ in found.top] == [t for t, _ in wanted.top]
            assert found.rank == wanted.rank
        local.run(releases=[1, 2])


def test_acceptance_follows_the_distribution(local) -> None:
    """Chi-square over 1,500 seeds: whether the draft is accepted and what comes in its place are
    as likely as the target distribution says, and no seed draws otherwise for having a draft.
    """
    rules = Sampling(temperature=1.5, top_k=6, top_logprobs=6, processed_logprobs=True)
    seeds, width = 1500, 50
    start(local, 1, rules)
    top = local.run(items=[verify(1, [])]).items[0].row.top
    probability = {token: float(np.exp(logprob)) for token, logprob in top}
    draft = top[1][0]
    counts = dict.fromkeys(probability, 0)
    accepted = 0
    tokens = local.core.read_session(local.ref, include_tables=False, include_tokens=True)
    known = list(tokens.sequences[0].token_ids)[:-1]
    blocks = [local.allocate(2) for _ in range(width)]
    for first in range(0, seeds, width):
        ids = range(100, 100 + width)
        local.run(
            new_sequences=[
                NewSequence(i, known, {0: blocks[i - 100]}, rules, seed=first + i) for i in ids
            ]
        )
        whole = TokenSource.REGISTERED
        items = [
            Item(i, len(known), source=whole, sample=True, draft_tokens=[draft]) for i in ids
        ]
        for item in local.run(items=items).items:
            row = item.row
            accepted += bool(row.accepted)
            counts[row.accepted[0].token if row.accepted else row.token] += 1
        local.run(releases=list(ids))
    assert accepted == counts[draft]
    chi_square = sum(
        (counts[token] - seeds * p) ** 2 / (seeds * p) for token, p in probability.items()
    )
    assert chi_square < 20.5, (counts, probability)  # 0.1 % of 5 degrees of freedom


def test_rejected_drafts_leave_no_nan_behind(local) -> None:
    """Blocks that drafts were written to serve another sequence after them."""
    wanted = plain(local, GREEDY)
    for _ in range(3):
        start(local, 1, GREEDY)
        local.run(items=[verify(1, [1, 2, 3, 4, 5])])
        local.run(releases=[1])
    assert plain(local, GREEDY) == wanted
    assert mx.default_device() == mx.Device(mx.cpu)
