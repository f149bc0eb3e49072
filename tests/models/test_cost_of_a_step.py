"""What a step may cost: one evaluation, no memory that grows with the pool, the path that was asked
for.
"""

from __future__ import annotations

import gc
import io
import threading
from collections import Counter

import mlx.core as mx
import pytest
from mlx_lm.models.cache import make_prompt_cache

from mlxrt import kernels


def _population(scheduler, count: int = 6) -> None:
    for index in range(count):
        scheduler.add(list(range(1, 4 + 5 * index)), 12)


@pytest.mark.parametrize("path", ["gather", "native"])
def test_one_async_eval_a_step_and_no_other_evaluation(
    path, checkpoint, start_engine, make_scheduler, monkeypatch
):
    running = start_engine(checkpoint("qwen3"), attention=path)
    calls: Counter[str] = Counter()
    for name in ("eval", "async_eval", "synchronize"):
        original = getattr(mx, name)

        def counted(*arguments, _name=name, _original=original):
            calls[_name, threading.current_thread().name] += 1
            return _original(*arguments)

        monkeypatch.setattr(mx, name, counted)
    scheduler = make_scheduler(running, seed=1)
    _population(scheduler)
    steps = scheduler.finish()
    assert calls == {("async_eval", "mlxrt-engine"): steps}
    assert running.engine.counters().async_evals == steps


def test_the_native_path_runs_the_kernels_once_per_layer_and_the_gather_path_none(
    checkpoint, start_engine, make_scheduler
):
    for path, calls in (("gather", 0), ("native", 3)):
        running = start_engine(checkpoint("qwen3"), attention=path)
        scheduler = make_scheduler(running, seed=1)
        _population(scheduler)
        kernels.reset_counters()
        steps = scheduler.finish()
        counted = kernels.counters()
        running.engine.close()
        # The last layer of a step that samples nothing need not attend.
        assert counted["kv_write"] + counted["norm_rope_write"] == calls * steps
        assert calls * (steps - 1) <= counted["paged_attention"] <= calls * steps
        assert counted["copy_blocks"] == 0


def _operation_count(arrays: list[mx.array]) -> int:
    """Operations of the lazy graph that ends in `arrays`."""
    graph = io.StringIO()
    mx.export_to_dot(graph, *arrays)
    return graph.getvalue().count("shape=rectangle")


@pytest.mark.parametrize("name", ["qwen3", "llama"])
def test_a_decode_step_has_no_more_operations_than_mlx_lms_own(
    name, checkpoint, start_engine, make_scheduler, make_oracle, monkeypatch
):
    running = start_engine(checkpoint(name), attention="native")
    counts: list[int] = []
    launch = mx.async_eval

    def counted(arrays: list[mx.array]) -> None:
        counts.append(_operation_count(arrays))
        launch(arrays)

    scheduler = make_scheduler(running, seed=1, in_flight=1)
    for index in range(8):
        scheduler.add([1 + index, 2, 3], 3)
    scheduler.step(scheduler.sequences, chunk=8)
    monkeypatch.setattr(mx, "async_eval", counted)
    scheduler.step(scheduler.sequences, chunk=1)
    monkeypatch.undo()
    assert scheduler.seen["decode"] == 8
    model = make_oracle(checkpoint(name)).model
    caches = make_prompt_cache(model)
    mx.eval(model(mx.ones((8, 3), mx.int32), cache=caches))
    tokens = model(mx.ones((8, 1), mx.int32), cache=caches)[:, -1].argmax(-1)
    held = [array for cache in caches for array in (cache.keys, cache.values)]
    [ours] = counts
    assert 40 < ours <= _operation_count([tokens, *held])


@pytest.mark.parametrize("path", ["gather", "native"])
def test_a_step_takes_no_memory_that_grows_with_the_pool(
    path, checkpoint, start_engine, make_scheduler
):
    extra = {}
    for num_blocks in (256, 8192):
        running = start_engine(checkpoint("llama"), attention=path, num_blocks=num_blocks)
        gc.collect()  # or what other tests left is freed in between
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        scheduler = make_scheduler(running, seed=1)
        _population(scheduler)
        scheduler.finish()
        extra[num_blocks] = running.engine.counters().peak_bytes - before
        pool_bytes = running.engine.memory_plan.pool_bytes
        running.engine.close()
    layer_array_bytes = pool_bytes // 4
    assert extra[8192] - extra[256] < layer_array_bytes // 16


@pytest.mark.parametrize("path", ["gather", "native"])
def test_the_plan_bounds_what_a_step_takes(
    path, save_checkpoint, start_engine, make_scheduler
):
    """MLX runs ahead by operations, of which fused layers have few: what it then holds at once is
    bounded by the limit alone.
    """
    folder = save_checkpoint("qwen3", num_hidden_layers=12)
    fraction = 0.8
    for _ in range(2):  # the second time the limit is what the plan sums up to
        running = start_engine(
            folder, attention=path, max_step_rows=512, max_model_length=512, num_blocks=300,
            memory_fraction=fraction,
        )  # fmt: skip
        plan = running.engine.memory_plan
        gc.collect()  # or what other tests left is freed in between
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        scheduler = make_scheduler(running, seed=1)
        scheduler.add([5] * 500, 3)
        scheduler.add([6] * 12, 3)
        scheduler.finish(chunk=500)
        taken = running.engine.counters().peak_bytes - before
        running.engine.close()
        # What other tests left counts for MLX too.
        others = max(0, before - plan.weight_bytes - plan.pool_bytes)
        fraction = (plan.total_bytes + others + 4096) / plan.device_bytes
    # MLX looks when an array is there already.
    assert taken <= 1.15 * plan.step_bytes


def test_rows_are_padded_to_buckets_and_padding_changes_nothing(
    checkpoint, start_engine, make_scheduler
):
    tokens = {}
    for buckets in ((), (4, 16, 64)):
        for path in ("gather", "native"):
            running = start_engine(checkpoint("qwen3"), attention=path, row_buckets=buckets)
            scheduler = make_scheduler(running, seed=1, in_flight=1)
            _population(scheduler, 5)
            pending = scheduler.sequences
            sampling = sum(len(s.prompt) <= 8 for s in pending)
            scheduler.step(pending, chunk=8)
            assert running.engine.counters().rows == 3 + 8 * 4
            expected_padding = 64 - 35 if buckets else 0
            assert running.engine.counters().padding_rows == expected_padding
            assert running.engine.counters().head_rows == sampling
            scheduler.finish()
            tokens[path, buckets] = [s.tokens for s in scheduler.sequences]
            running.engine.close()
    assert tokens["gather", ()] == tokens["gather", (4, 16, 64)]
    assert tokens["native", ()] == tokens["native", (4, 16, 64)] == tokens["gather", ()]


def test_the_bucket_is_reported(checkpoint, start_engine, make_scheduler):
    running = start_engine(checkpoint("qwen3"), row_buckets=(4, 16, 64))
    scheduler = make_scheduler(running, seed=1, in_flight=2)
    scheduler.add([1, 2, 3, 4, 5], 4)
    scheduler.step(scheduler.sequences, chunk=8)
    outcome = scheduler.read()
    assert outcome.bucket_row_count == 16
    assert outcome.timings.build_us > 0
    assert outcome.timings.device_us > 0
