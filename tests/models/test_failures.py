"""A sequence that fails alone harms no mate; a step that fails leaves all as it was."""

from __future__ import annotations

import json

import mlx.core as mx
import numpy as np
import pytest

from mlxrt.core.sampling import GREEDY
from mlxrt.core.step import Entry, Registration, StepPlan, TableUpdate, TokenSource
from mlxrt.engine.forward import Forward
from mlxrt.errors import MlxrtError, Reason

REGISTERED, EXPLICIT = TokenSource.REGISTERED, TokenSource.EXPLICIT
BAD_TOKEN = 13


@pytest.fixture
def poisonous(tmp_path, checkpoint):
    """A checkpoint in which one token's embedding is NaN; the head is another matrix."""
    source = checkpoint("llama")
    weights = mx.load(str(source / "model.safetensors"))
    embedding = np.array(weights["model.embed_tokens.weight"])
    embedding[BAD_TOKEN] = np.nan
    weights["model.embed_tokens.weight"] = mx.array(embedding)
    mx.save_safetensors(str(tmp_path / "model.safetensors"), weights)
    (tmp_path / "config.json").write_text((source / "config.json").read_text())
    return tmp_path


def start(handle: int, prompt: list[int], blocks: list[int], **entry) -> StepPlan:
    """A plan that registers a sequence and computes its prompt."""
    return StepPlan(
        ticket=handle,
        registrations=[Registration(handle, prompt, GREEDY, 0)],
        table_updates=[TableUpdate(handle, 0, 0, blocks, len(blocks))],
        entries=[Entry(handle, 0, len(prompt), REGISTERED, sample=True, **entry)],
    )


def joined(*plans: StepPlan) -> StepPlan:
    """One plan with the content of several."""
    plan = StepPlan(plans[0].ticket)
    for part in plans:
        plan.registrations += part.registrations
        plan.table_updates += part.table_updates
        plan.entries += part.entries
    return plan


def decode(ticket: int, positions: dict[int, int]) -> StepPlan:
    return StepPlan(ticket, decode_handles=list(positions), decode_starts=list(positions.values()))


@pytest.mark.parametrize("path", ["gather", "native"])
def test_a_row_of_nan_fails_alone(path, poisonous, start_engine, make_oracle):
    running = start_engine(poisonous, attention=path)
    good, bad = [4, 8, 15, 16], [23, BAD_TOKEN, 42]
    expected = make_oracle(poisonous).greedy(good, 4)[4:]
    first = joined(start(1, good, [5, 6, 7]), start(2, bad, [9, 8]), start(3, good, [2, 3, 4]))
    running.submit(first)
    # Built from tokens that are still on the device, the failed sequence's among them.
    running.submit(decode(2, {3: 4, 2: 3, 1: 4}))
    outcome = running.outcome()
    rows = outcome.entry_rows
    assert rows[1].failure.reason is Reason.NON_FINITE_LOGITS
    assert rows[1].token is None
    assert [rows[0].token, rows[2].token] == expected[:1] * 2
    second = running.outcome()
    assert set(second.decode_details) == {1}
    assert second.decode_details[1].failure.reason is Reason.NON_FINITE_LOGITS
    tokens = [list(second.decode_tokens)[i] for i in (0, 2)]
    third = running.run(StepPlan(3, retired=[2], decode_handles=[1], decode_starts=[5]))
    assert [*tokens, *third.decode_tokens] == [expected[1], expected[1], expected[2]]
    # The failed sequence's blocks hold NaN; their next owner is unharmed.
    fourth = running.run(start(4, good, [8, 9]))
    assert fourth.entry_rows[0].token == expected[0]
    assert running.engine.counters().failed_sequences == 2


class _FailNow(Exception):
    pass


def _fail_when(monkeypatch, condition) -> None:
    """Makes the build of a step fail after the pool of its first layer was rebound."""
    original = Forward.build

    def build(self, batch, sampling, unread):
        if condition(batch):
            layer = self.layers[0]
            layer.keys = layer.keys + 1
            raise _FailNow("asked for")
        return original(self, batch, sampling, unread)

    monkeypatch.setattr(Forward, "build", build)


@pytest.mark.parametrize("path", ["gather", "native"])
def test_a_failed_step_leaves_mates_and_later_steps_right(
    path, checkpoint, start_engine, make_oracle, monkeypatch
):
    folder = checkpoint("qwen3")
    running = start_engine(folder, attention=path)
    prompt, mate = [4, 8, 15, 16], [23, 42, 77]
    expected = make_oracle(folder).greedy(prompt, 6)[4:]
    expected_mate = make_oracle(folder).greedy(mate, 4)[3:]
    first = running.run(joined(start(1, prompt, [5, 6, 7]), start(2, mate, [9, 8])))
    assert [row.token for row in first.entry_rows] == [expected[0], expected_mate[0]]

    _fail_when(monkeypatch, lambda batch: batch is not None and len(batch.handles) == 1)
    running.submit(decode(2, {1: 4, 2: 3}))
    running.submit(decode(3, {2: 4}))
    assert list(running.outcome().decode_tokens) == [expected[1], expected_mate[1]]
    failed = running.outcome()
    assert failed.failure.reason is Reason.EXECUTION_FAILED
    assert "asked for" in failed.failure.message
    monkeypatch.undo()

    again = running.run(decode(4, {2: 4, 1: 5}))
    assert list(again.decode_tokens) == [expected_mate[2], expected[2]]
    assert running.engine.counters().failed_steps == 1


def test_explicit_tokens_of_a_failed_step_are_taken_back(
    checkpoint, start_engine, make_oracle, monkeypatch
):
    folder = checkpoint("qwen3")
    running = start_engine(folder)
    prompt = [4, 8, 15, 16, 23]
    expected = make_oracle(folder).greedy(prompt, 3)[5:]
    running.submit(start(1, prompt, [5, 6, 7]))
    _fail_when(monkeypatch, lambda batch: bool(batch and batch.overwrites))
    # Replaces prompt tokens and the sampled one, which is still on the device.
    entry = Entry(1, 3, 3, EXPLICIT, [99, 98, 97], sample=True)
    running.submit(StepPlan(2, entries=[entry]))
    assert running.outcome().entry_rows[0].token == expected[0]
    assert running.outcome().failure is not None
    monkeypatch.undo()
    # The whole sequence is computed anew from what the engine holds.
    anew = running.run(StepPlan(3, entries=[Entry(1, 0, 6, REGISTERED, sample=True)]))
    assert anew.entry_rows[0].token == expected[1]


def test_explicit_tokens_replace_what_was_known(checkpoint, start_engine, make_oracle):
    folder = checkpoint("qwen3")
    running = start_engine(folder)
    running.run(start(1, [4, 8, 15, 16, 23], [5, 6, 7]))
    expected = make_oracle(folder).greedy([4, 8, 15, 99, 98], 2)[5:]
    entry = Entry(1, 3, 2, EXPLICIT, [99, 98], sample=True)
    assert running.run(StepPlan(2, entries=[entry])).entry_rows[0].token == expected[0]
    assert list(running.run(decode(3, {1: 5})).decode_tokens) == expected[1:]


def test_a_cancelled_plan_changes_tables_but_no_tokens(checkpoint, start_engine, make_oracle):
    folder = checkpoint("qwen3")
    running = start_engine(folder)
    prompt = [4, 8, 15, 16]
    expected = make_oracle(folder).greedy(prompt, 2)[4:]
    running.run(start(1, prompt, [5]))
    steps = running.engine.counters().steps
    cancelled = StepPlan(
        2,
        registrations=[Registration(2, prompt, GREEDY, 0)],
        table_updates=[TableUpdate(1, 0, 1, [6], 2), TableUpdate(2, 0, 0, [9], 1)],
        copies=[(0, 5, 6)],
        entries=[Entry(1, 0, 4, EXPLICIT, [1, 1, 1, 1], sample=True)],
        cancelled=True,
    )
    assert running.run(cancelled).failure.reason is Reason.PREDECESSOR_FAILED
    assert running.engine.counters().steps == steps
    plan = decode(3, {1: 4})
    plan.entries = [Entry(2, 0, 4, REGISTERED, sample=True)]
    outcome = running.run(plan)
    assert [*outcome.decode_tokens, outcome.entry_rows[0].token] == expected[::-1]


def test_a_device_error_fails_the_step_and_the_engine_goes_on(
    checkpoint, start_engine, make_oracle, monkeypatch
):
    folder = checkpoint("qwen3")
    running = start_engine(folder, attention="native")
    expected = make_oracle(folder).greedy([4, 8, 15], 2)[3:]
    first = running.run(start(1, [4, 8, 15], [5, 6]))
    assert first.entry_rows[0].token == expected[0]
    original = mx.async_eval
    calls = []

    def broken(*arguments):
        calls.append(arguments)
        raise RuntimeError("the device says no")

    monkeypatch.setattr(mx, "async_eval", broken)
    failed = running.run(decode(2, {1: 3}))
    assert failed.failure.reason is Reason.EXECUTION_FAILED
    assert len(calls) == 1
    monkeypatch.setattr(mx, "async_eval", original)
    tokens = [running.run(decode(3, {1: 3})).decode_tokens[0] for _ in range(2)]
    assert tokens == [expected[1]] * 2


def test_a_plan_without_rows_and_one_with_copies_alone(checkpoint, start_engine):
    running = start_engine(checkpoint("qwen3"), attention="native")
    outcome = running.run(StepPlan(1, registrations=[Registration(1, [3, 4, 5], GREEDY, 0)]))
    assert (outcome.failure, outcome.bucket_row_count, outcome.entry_rows) == (None, 0, [])
    assert running.engine.counters().steps == 0
    outcome = running.run(StepPlan(2, copies=[(0, 1, 2), (0, 3, 4)]))
    assert outcome.failure is None
    assert running.engine.counters().async_evals == 1


def test_a_config_that_lies_about_its_vocabulary_is_refused(tmp_path, checkpoint, start_engine):
    source = checkpoint("qwen3")
    config = json.loads((source / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "vocab_size": 400}))
    (tmp_path / "model.safetensors").symlink_to(source / "model.safetensors")
    with pytest.raises(MlxrtError, match=r"Expected shape \(400, 64\)"):
        start_engine(tmp_path)
