"""Token masks and deferred sampling through core and engine, against NumPy over the logits."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from mlxrt.core.answers import SessionRef
from mlxrt.core.model import Limits
from mlxrt.core.sampling import GREEDY, Sampling
from mlxrt.core.step import Item, Mask, NewSequence, StepInput, StepReply, TokenSource
from mlxrt.engine.engine_config import EngineConfig
from mlxrt.engine.mlx_engine import MlxEngine
from mlxrt.errors import Reason
from mlxrt.testing.local_runner import LocalRunner, now_ms

PROMPT = [4, 8, 15, 16, 23, 42]
RULES = [
    GREEDY,
    Sampling(temperature=1.7),
    Sampling(temperature=2.0, top_k=5, top_p=0.9, min_p=0.01),
    Sampling(repetition_penalty=2.0, frequency_penalty=2.0, logit_bias=((3, 50.0),)),
]


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


def mask(local: LocalRunner, sequence_id: int, *rows: list[int]) -> Mask:
    """Allows the tokens of each row; bits past the vocabulary are set, and mean nothing."""
    size = local.facts.vocabulary_size
    bits = np.ones((len(rows), -(-size // 32) * 32), np.uint8)
    bits[:, :size] = 0
    for row, tokens in zip(bits, rows, strict=True):
        row[tokens] = 1
    return Mask(sequence_id, len(rows), np.packbits(bits, axis=1, bitorder="little").tobytes())


def start(local: LocalRunner, sequence_id: int, rules: Sampling = GREEDY) -> StepReply:
    return local.run(
        new_sequences=[
            NewSequence(sequence_id, PROMPT, {0: local.allocate(16)}, rules, seed=sequence_id)
        ],
        items=[Item(sequence_id, len(PROMPT), source=TokenSource.REGISTERED, sample=True)],
    )


def decode(sequence_id: int, drafts: list[int] | None = None, **more: bool) -> Item:
    return Item(
        sequence_id, 1, source=TokenSource.LAST_SAMPLED, sample=True,
        draft_tokens=drafts or [], **more,
    )  # fmt: skip


@pytest.mark.parametrize("rules", RULES)
def test_only_allowed_tokens_are_sampled(local: LocalRunner, rules: Sampling) -> None:
    random = np.random.default_rng(7)
    start(local, 1, rules)
    start(local, 2)
    unmasked = [start(local, 3).items[0].row.token]
    for _ in range(12):
        allowed = random.choice(local.facts.vocabulary_size, 3, replace=False).tolist()
        reply = local.run(decode_ids=[1, 3], items=[decode(2, return_logits=True)],
                          masks=[mask(local, 1, allowed), mask(local, 2, allowed)])  # fmt: skip
        assert reply.token_ids[0] in allowed
        row = reply.items[0].row
        logits = np.frombuffer(row.logits, "<f4")
        assert row.token == min(allowed, key=lambda t: (-logits[t], t))
        unmasked.append(reply.token_ids[1])
    # The sequence without a mask is not touched by those of its mates.
    free = [start(local, 4).items[0].row.token]
    free += [local.run(decode_ids=[4]).token_ids[0] for _ in range(12)]
    assert unmasked == free


def test_masked_logprobs(local: LocalRunner) -> None:
    allowed = [3, 9, 27]
    for processed, temperature in ((False, 0.0), (True, 0.0), (True, 0.7)):
        rules = Sampling(
            temperature=temperature, top_logprobs=3, processed_logprobs=processed
        )
        start(local, 1, rules)
        reply = local.run(
            items=[decode(1, return_logits=True)], masks=[mask(local, 1, allowed)]
        )
        row = reply.items[0].row
        logits = np.frombuffer(row.logits, "<f4").astype(np.float64)
        if processed:
            hidden = np.setdiff1d(np.arange(logits.size), allowed)
            logits[hidden] = -np.inf
            logits /= temperature or 1.0
        wanted = logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
        assert row.logprob == pytest.approx(wanted[row.token], abs=1e-5)
        assert {t for t, _ in row.top} == set(allowed) or not processed
        local.run(releases=[1])


def test_an_empty_mask_fails_one_sequence_alone(local: LocalRunner) -> None:
    for sequence_id in (1, 2, 3):
        start(local, sequence_id)
    reply = local.run(decode_ids=[1, 2], items=[decode(3)],
                      masks=[mask(local, 2, []), mask(local, 3, [])])  # fmt: skip
    failures = [detail.row.failure for detail in reply.details]
    failures.append(reply.items[0].row.failure)
    assert [failure.reason for failure in failures] == [Reason.MASK_EMPTY] * 2
    follow = local.run(decode_ids=[1], releases=[2, 3])
    start(local, 4)
    assert [*reply.token_ids[:1], *follow.token_ids] == [
        local.run(decode_ids=[4]).token_ids[0] for _ in range(2)
    ]


def test_each_draft_has_a_row_of_the_mask(local: LocalRunner) -> None:
    start(local, 1)
    rows = [[5], [6], [7, 8]]
    reply = local.run(items=[decode(1, [5, 6])], masks=[mask(local, 1, *rows)])
    row = reply.items[0].row
    assert [each.token for each in row.accepted] == [5, 6] and row.token in (7, 8)
    # What is forbidden is not drawn, so not accepted; and a row behind that may be empty.
    reply = local.run(items=[decode(1, [5, 6])], masks=[mask(local, 1, [9], [], [])])
    assert (reply.items[0].row.token, len(reply.items[0].row.accepted)) == (9, 0)
    reply = local.run(items=[decode(1, [5, 6])], masks=[mask(local, 1, [5], [], [3])])
    assert reply.items[0].row.failure.reason is Reason.MASK_EMPTY


@pytest.mark.parametrize("rules", RULES)
def test_deferred_sampling_gives_the_same_tokens(local: LocalRunner, rules: Sampling) -> None:
    """Ten steps with masks inside, ten with masks that come later, early or late."""
    random = np.random.default_rng(3)
    masks = [random.choice(local.facts.vocabulary_size, 4, replace=False) for _ in range(10)]
    start(local, 1, rules)
    inside = [
        local.run(decode_ids=[1], masks=[mask(local, 1, allowed)]).token_ids[0]
        for allowed in masks
    ]
    local.run(releases=[1])
    start(local, 1, rules)
    before = local._engine.counters()
    later = []
    for index, allowed in enumerate(masks):
        local.submit(decode_ids=[1], deferred=True)
        if index % 2:
            # The forward has ended.
            outcome = local._answers.get(timeout=60)
            assert local.core.finish(outcome, now_ms()) == []
        local.sample(mask(local, 1, allowed))
        later += local.finish().token_ids
    assert later == inside
    after = local._engine.counters()
    # A deferred step is two launches, its forward and its sampling; its rows count once.
    assert after.async_evals - before.async_evals == 2 * len(masks)
    assert after.rows - before.rows == after.head_rows - before.head_rows == len(masks)


def test_a_step_behind_a_deferred_one_takes_its_token(local: LocalRunner) -> None:
    start(local, 1)
    start(local, 2)
    free = [local.run(decode_ids=[2]).token_ids[0] for _ in range(4)]
    tokens = []
    for _ in range(2):
        local.submit(decode_ids=[1], deferred=True)
        local.sample()
        local.submit(decode_ids=[1])
        tokens += local.finish().token_ids
        tokens += local.finish().token_ids
    assert tokens == free


def test_deferred_drafts(local: LocalRunner) -> None:
    start(local, 1)
    start(local, 2)
    truth = [local.run(decode_ids=[2]).token_ids[0] for _ in range(4)]
    local.submit(items=[decode(1, [*truth[:2], 63])], deferred=True)
    local.sample()
    row = local.finish().items[0].row
    assert [*(each.token for each in row.accepted), row.token] == truth[:3]
    assert local.run(decode_ids=[1]).token_ids == truth[3:]


def test_another_session_runs_between_forward_and_sampling(local: LocalRunner) -> None:
    """It registers sequences, decodes and releases; places in the engine's memory change hands."""
    start(local, 1)
    start(local, 2)
    truth = [local.run(decode_ids=[2]).token_ids[0] for _ in range(6)]
    other = LocalSession(local, "b")
    wanted = other.tokens(1, 6)
    local.submit(decode_ids=[1], deferred=True)
    assert local.core.finish(local._answers.get(timeout=60), now_ms()) == []
    local.core.free_sequences(local.ref, "free", [2], now_ms(), free_blocks=False)
    assert other.tokens(2, 6) == wanted
    local.sample()
    assert local.finish().token_ids == truth[:1]
    assert local.run(decode_ids=[1]).token_ids == truth[1:2]


class LocalSession:
    """A second session on the core of a LocalRunner."""

    def __init__(self, local: LocalRunner, name: str) -> None:
        self.local, self.number, self.leases = local, 0, 0
        opened = local.core.open_session(
            name, 60_000, name, session_id=name * 32, session_seed=2, now_ms=now_ms()
        )
        self.ref: SessionRef = opened.session

    def run(self, **content: object) -> StepReply:
        self.number += 1
        step = StepInput(self.number, str(self.number).encode(), **content)
        core = self.local.core
        core.accept(self.ref.session_id, self.ref.epoch, step, now_ms())
        return self._finish()

    def _finish(self) -> StepReply:
        self.local._hand_over()
        ((_, reply),) = self.local.core.finish(self.local._answers.get(timeout=60), now_ms())
        assert reply.error is None
        return reply

    def tokens(self, sequence_id: int, count: int) -> list[int]:
        """Greedy tokens of a sequence that comes and goes."""
        self.leases += 1
        blocks = self.local.core.allocate_blocks(
            self.ref, f"b{self.leases}", {0: 8}, now_ms()
        )
        new = NewSequence(sequence_id, PROMPT[::-1], blocks)
        item = Item(sequence_id, len(PROMPT), source=TokenSource.REGISTERED, sample=True)
        tokens = [self.run(new_sequences=[new], items=[item]).items[0].row.token]
        while len(tokens) < count:
            tokens += self.run(decode_ids=[sequence_id]).token_ids
        self.run(releases=[sequence_id])
        return tokens


def test_a_deferred_step_that_is_given_up_leaves_no_trace(local: LocalRunner) -> None:
    start(local, 1)
    start(local, 2)
    truth = [local.run(decode_ids=[2]).token_ids[0] for _ in range(2)]
    local.submit(items=[decode(1, [9, 9])], deferred=True)
    local.ref = local.core.resume(local.ref, "take-over", now_ms()).session
    local._hand_over()
    with pytest.raises(Exception, match="EPOCH_STALE"):
        local.finish()
    assert not local._engine._assembled.runner._held
    assert [local.run(decode_ids=[1]).token_ids[0] for _ in range(2)] == truth
