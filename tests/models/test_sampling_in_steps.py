"""Sampling rules through the engine: the same tokens whether the tokens before them were read or
are still on the device.
"""

from __future__ import annotations

import numpy as np
import pytest

from mlxrt.core.sampling import Sampling
from mlxrt.core.step import Entry, Registration, StepPlan, TableUpdate, TokenSource
from mlxrt.engine.sampling import DrawLines, SamplingBatch

RULES = [
    Sampling(temperature=0.9, top_p=0.9),
    Sampling(temperature=1.3, top_k=20, min_p=0.01),
    Sampling(repetition_penalty=1.4, frequency_penalty=0.6, presence_penalty=0.3),
    Sampling(temperature=0.7, repetition_penalty=1.2, frequency_penalty=1.5),
    Sampling(logit_bias=((5, 12.0), (6, 11.0)), frequency_penalty=2.0),
    Sampling(top_logprobs=3),
    Sampling(),
]
PROMPT = [4, 8, 15, 16, 23, 42]
STEPS = 14


def _plans(all_rules: list[Sampling]) -> list[StepPlan]:
    """Prefill of one sequence per rule, then decode steps."""
    first = StepPlan(1)
    for handle, rules in enumerate(all_rules, start=1):
        first.registrations.append(Registration(handle, PROMPT, rules, seed=1000 + handle))
        blocks = list(range(6 * handle, 6 * handle + 6))
        first.table_updates.append(TableUpdate(handle, 0, 0, blocks, 6))
        first.entries.append(Entry(handle, 0, 6, TokenSource.REGISTERED, sample=True))
    handles = list(range(1, len(all_rules) + 1))
    return [first] + [
        StepPlan(2 + step, decode_handles=handles, decode_starts=[6 + step] * len(handles))
        for step in range(STEPS)
    ]


def _run(running, in_flight: int) -> list[list[int]]:
    """Tokens by sequence."""
    tokens: list[list[int]] = [[] for _ in RULES]
    plans = _plans(RULES)
    submitted = 0
    for index in range(len(plans)):
        while submitted < min(len(plans), index + in_flight):
            running.submit(plans[submitted])
            submitted += 1
        outcome = running.outcome()
        assert outcome.failure is None, outcome.failure
        if index:
            row = list(outcome.decode_tokens)
            detail = outcome.decode_details[5]
            assert detail.token == row[5] == detail.top[0][0]
            assert detail.rank == 1
            assert len(detail.top) == 3
            assert set(outcome.decode_details) == {5}
        else:
            row = [entry.token for entry in outcome.entry_rows]
        for sequence, token in zip(tokens, row, strict=True):
            sequence.append(token)
    return tokens


@pytest.mark.parametrize("path", ["gather", "native"])
def test_pending_tokens_count_like_read_ones(path, checkpoint, start_engine, make_oracle):
    folder = checkpoint("qwen3")
    runs = []
    for in_flight in (1, 2):
        running = start_engine(folder, attention=path)
        runs.append(_run(running, in_flight))
        running.engine.close()
    assert runs[0] == runs[1]
    tokens = runs[0]
    greedy = make_oracle(folder).greedy(PROMPT, STEPS + 1)[len(PROMPT) :]
    assert tokens[5] == tokens[6] == greedy
    for rules, generated in list(zip(RULES, tokens, strict=True))[:5]:
        assert generated != greedy, rules
    # The bias decides the first tokens; the penalty on each use then drives it away from both.
    assert set(tokens[4][:2]) <= {5, 6}
    assert len(set(tokens[4])) > 2


@pytest.mark.parametrize("path", ["gather", "native"])
def test_draws_alone_are_gathered_without_a_look_at_each_row(
    path, checkpoint, start_engine, monkeypatch
):
    folder, rules = checkpoint("qwen3"), [RULES[0], RULES[6], RULES[1], RULES[6]]
    ways = {"gathered": (SamplingBatch, "build"), "row by row": (DrawLines, "gather")}
    answers = {"build": _refuse, "gather": lambda *_: None}
    tokens = {}
    for way, (owner, name) in ways.items():
        running = start_engine(folder, attention=path)
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, answers[name])
            outcomes = [running.run(plan) for plan in _plans(rules)]
        running.engine.close()
        assert [outcome.failure for outcome in outcomes] == [None] * (STEPS + 1)
        tokens[way] = [list(outcome.decode_tokens) for outcome in outcomes[1:]]
    assert tokens["gathered"] == tokens["row by row"]
    assert all(len({step[k] for step in tokens["gathered"]}) > 1 for k in (0, 2))


def _refuse(*_) -> SamplingBatch:
    raise AssertionError("the rules went row by row")


def test_penalties_follow_the_formula(checkpoint, start_engine, make_oracle):
    folder = checkpoint("qwen3")
    running = start_engine(folder, attention="gather")
    generated = _run(running, 2)[2]
    rules, oracle = RULES[2], make_oracle(folder)
    logits = oracle.logits(PROMPT + generated)
    for step, token in enumerate(generated):
        row = logits[len(PROMPT) - 1 + step].astype(np.float64)
        before = generated[:step]
        for seen in set(PROMPT + before):
            row[seen] = row[seen] / 1.4 if row[seen] > 0 else row[seen] * 1.4
        for used in set(before):
            row[used] -= rules.frequency_penalty * before.count(used) + rules.presence_penalty
        assert int(row.argmax()) == token


@pytest.mark.parametrize("path", ["gather", "native"])
def test_given_tokens_count_as_generated_in_the_prompts_place_too(
    path, checkpoint, start_engine, make_oracle
):
    """And they go on to where the sequence comes back after a step that was discarded."""
    folder, rules, head, given = checkpoint("qwen3"), RULES[4], PROMPT[:2], [5, 5, 5]
    running = start_engine(folder, attention=path)
    running.run(_plans([rules])[0])
    item = Entry(1, 2, 3, TokenSource.EXPLICIT, given, sample=True)
    running.submit(StepPlan(2, entries=[item]))
    running.submit(StepPlan(3, decode_handles=[1], decode_starts=[5]))
    tokens = [*given, running.outcome().entry_rows[0].token, *running.outcome().decode_tokens]
    back = Registration(2, head + tokens, rules, seed=0, generated_count=len(tokens))
    update = TableUpdate(2, 0, 0, list(range(6, 12)), 6)
    row = Entry(2, 6, 1, TokenSource.REGISTERED, sample=True)
    plan = StepPlan(4, [1], [back], [update], entries=[row])
    tokens.append(running.run(plan).entry_rows[0].token)
    logits = make_oracle(folder).logits(head + tokens)[1:].astype(np.float64)
    for count in (3, 4, 5):
        row = logits[count]
        for token, bias in rules.logit_bias:
            row[token] += bias
        for used in tokens[:count]:
            row[used] -= rules.frequency_penalty
        assert int(row.argmax()) == tokens[count]
    # The bias is for 5, three times the penalty against it.
    assert tokens[3] == 6
