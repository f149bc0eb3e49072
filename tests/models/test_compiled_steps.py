"""Decode steps that are replayed: the tokens of mlx-lm, few traces, a bounded cache, pools in
place.
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from mlxrt import kernels
from mlxrt.core.sampling import Sampling
from mlxrt.core.step import Entry, Registration, StepPlan, TableUpdate, TokenSource
from mlxrt.engine import compiled
from mlxrt.engine.compiled import table_width
from mlxrt.errors import MlxrtError, Reason


@pytest.fixture(autouse=True)
def compiling_is_off_afterwards():
    yield
    mx.disable_compile()


@pytest.mark.parametrize(
    ("name", "bits", "buckets"),
    [("qwen3", None, (4, 16, 64)), ("qwen3", 4, ()), ("llama", None, (2, 8))],
)
def test_tokens_are_mlx_lms(
    name, bits, buckets, checkpoint, start_engine, make_scheduler, make_oracle
):
    folder = checkpoint(name, bits)
    running = start_engine(
        folder, attention="native", compiled="on", row_buckets=buckets, num_blocks=220
    )
    scheduler = make_scheduler(running, seed=3)
    scheduler.drive(11, steps_min=80)
    counters = running.engine.counters()
    running.engine.close()
    assert 20 < counters.compiled_steps < counters.steps == counters.async_evals
    assert 0 < counters.traces < counters.compiled_steps / 2
    assert scheduler.seen["preempted"] and scheduler.seen["shared"]
    oracle = make_oracle(folder)
    for sequence in scheduler.sequences:
        generated = sequence.known - len(sequence.prompt)
        assert sequence.tokens == oracle.greedy(sequence.prompt, generated)


def test_windows_are_replayed_too(save_checkpoint, start_engine, make_scheduler, make_oracle):
    types = ["sliding_attention", "full_attention"]
    folder = save_checkpoint("llama", layer_types=types, sliding_window=8)
    running = start_engine(folder, attention="native", compiled="on")
    scheduler = make_scheduler(running, seed=3, leave=True)
    sequences = [scheduler.add([5 + index, 6, 7], 40) for index in range(3)]
    scheduler.finish()
    assert scheduler.seen["left"] > 10
    assert running.engine.counters().compiled_steps >= 39
    oracle = make_oracle(folder)
    for sequence in sequences:
        assert sequence.tokens == oracle.greedy(sequence.prompt, 40)


def test_the_logits_behind_drawn_tokens_are_those_of_a_built_step(checkpoint, start_engine):
    rules = [Sampling(temperature=0.9, top_p=0.9), Sampling(top_logprobs=3), Sampling()]
    drawn = {}
    for choice in ("on", "off"):
        running = start_engine(
            checkpoint("qwen3"), attention="native", compiled=choice, row_buckets=(4,)
        )
        plan = StepPlan(1)
        for handle, rule in enumerate(rules, start=1):
            plan.registrations.append(Registration(handle, [4, 8, 15], rule, seed=handle))
            plan.table_updates.append(TableUpdate(handle, 0, 0, [3 * handle, 3 * handle + 1], 2))
            plan.entries.append(Entry(handle, 0, 3, TokenSource.REGISTERED, sample=True))
        outcomes = [running.run(plan)]
        for step in range(4):
            plan = StepPlan(2 + step, decode_handles=[1, 2, 3], decode_starts=[3 + step] * 3)
            outcomes.append(running.run(plan))
        assert [outcome.failure for outcome in outcomes] == [None] * 5
        assert running.engine.counters().compiled_steps == (4 if choice == "on" else 0)
        drawn[choice] = [list(outcome.decode_tokens) for outcome in outcomes[1:]]
        details = [outcome.decode_details[1].logprob for outcome in outcomes[1:]]
        drawn[choice, "logprobs"] = np.array(details)
        running.engine.close()
    assert drawn["on"] == drawn["off"]
    np.testing.assert_allclose(drawn["on", "logprobs"], drawn["off", "logprobs"], atol=1e-4)


def test_steps_with_chunks_drafts_and_logits_are_built(checkpoint, start_engine):
    running = start_engine(checkpoint("qwen3"), attention="native", compiled="on")
    plan = StepPlan(1)
    plan.registrations.append(Registration(1, [4, 8, 15], Sampling(), seed=1))
    plan.table_updates.append(TableUpdate(1, 0, 0, [3, 5, 9], 3))
    plan.entries.append(Entry(1, 0, 3, TokenSource.REGISTERED, sample=True))
    token = running.run(plan).entry_rows[0].token
    explicit = {"source": TokenSource.EXPLICIT, "token_ids": [token], "sample": True}
    for ticket, other in enumerate(({"draft_tokens": [7]}, {"return_logits": True}), start=2):
        plan = StepPlan(ticket, entries=[Entry(1, 3, 1, **explicit, **other)])
        assert running.run(plan).failure is None
    assert running.engine.counters().compiled_steps == 0
    assert running.run(StepPlan(9, entries=[Entry(1, 3, 1, **explicit)])).failure is None
    assert running.engine.counters().compiled_steps == 1


def test_shapes_are_few_and_the_cache_is_bounded(
    checkpoint, start_engine, make_scheduler, monkeypatch
):
    monkeypatch.setattr(compiled, "FUNCTIONS_MAX", 2)
    running = start_engine(checkpoint("qwen3"), attention="native", compiled="on", row_buckets=(4,))
    scheduler = make_scheduler(running, seed=3)
    sequence = scheduler.add([1, 2, 3], 120)
    scheduler.finish()
    counters = running.engine.counters()
    # 31 blocks of 4 positions, in tables of 8, 16, 24 and 32 entries; 8 were met at the warm-up.
    assert len(sequence.tables[0]) == 31
    assert counters.compiled_steps == 119
    assert counters.traces == 3
    assert len(running.engine._assembled.runner._forward.compiled) == 2


def test_table_widths() -> None:
    widths = [table_width(count) for count in range(1, 5000)]
    assert widths == sorted(widths) and len(set(widths)) < 65
    for count, width in enumerate(widths, start=1):
        assert count <= width <= max(count + 7, count * 9 / 8)


def test_pools_stay_in_place(checkpoint, start_engine, make_scheduler):
    running = start_engine(
        checkpoint("llama"), attention="native", compiled="on", num_blocks=8192, poison_pool=False
    )
    forward = running.engine._assembled.runner._forward
    addresses = [kernels.data_address(pool) for pool in forward.pools()]
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    scheduler = make_scheduler(running, seed=1)
    for index in range(6):
        scheduler.add(list(range(1, 4 + 5 * index)), 12)
    scheduler.finish()
    counters = running.engine.counters()
    assert counters.compiled_steps > 5
    assert counters.peak_bytes - before < running.engine.memory_plan.pool_bytes // 16
    assert [kernels.data_address(pool) for pool in forward.pools()] == addresses


def test_a_trace_that_fails_fails_its_step_alone(
    checkpoint, start_engine, make_scheduler, monkeypatch
):
    running = start_engine(checkpoint("qwen3"), attention="native", compiled="on")
    scheduler = make_scheduler(running, seed=3, in_flight=1)
    sequence = scheduler.add([1, 2, 3], 40)
    scheduler.step([sequence], chunk=3)
    decode = [StepPlan(ticket, decode_handles=[1], decode_starts=[3]) for ticket in (50, 51)]
    forward = running.engine._assembled.runner._forward
    forward.compiled._functions.clear()
    with monkeypatch.context() as patched:
        patched.setattr(kernels, "paged_attention", _refuse)
        failure = running.run(decode[0]).failure
    assert failure is not None and failure.reason is Reason.EXECUTION_FAILED
    assert running.run(decode[1]).failure is None


def _refuse(*arguments: object, **options: object) -> object:
    raise RuntimeError("no")


def test_on_needs_the_native_path(checkpoint, start_engine):
    with pytest.raises(MlxrtError, match="compiled: on, but steps can't be compiled"):
        start_engine(checkpoint("qwen3"), attention="gather", compiled="on")
