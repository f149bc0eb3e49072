"""Fused layers: the numbers of mlx-lm's own, the weights held once, and a word where they can't
be.
"""

from __future__ import annotations

import gc
import io

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
import structlog

from mlxrt import kernels
from mlxrt.attention import install_seam
from mlxrt.errors import MlxrtError
from mlxrt.models import read_checkpoint
from mlxrt.models.fused import FusedStack, fuse
from mlxrt.models.loading import build_model
from mlxrt.models.merging import NotFusedError, merged
from mlxrt.models.probe import probe

QWEN2 = {
    "model_type": "qwen2",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "vocab_size": 256,
    "max_position_embeddings": 1024,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
}


@pytest.fixture(autouse=True)
def compiling_is_off_afterwards():
    yield
    mx.disable_compile()


@pytest.fixture
def folder_of(checkpoint, checkpoint_writer, save_checkpoint, tmp_path):
    """The folder of a checkpoint by the name of a case."""

    def get(name: str):
        if name == "qwen2":
            return checkpoint_writer(tmp_path / "qwen2", QWEN2)
        if name == "windows":
            types = ["sliding_attention", "full_attention"]
            return save_checkpoint("llama", layer_types=types, sliding_window=8)
        if name == "linear rope":
            scaling = {"type": "linear", "factor": 4.0}
            return save_checkpoint("llama", rope_scaling=scaling, rope_traditional=True)
        name, _, bits = name.partition(" by ")
        return checkpoint(name, int(bits) if bits else None)

    return get


@pytest.mark.parametrize("compiled", ["on", "off"])
@pytest.mark.parametrize(
    "name",
    ["qwen3", "qwen3 by 4", "llama", "llama by 8", "llama_llama3_rope", "qwen2", "windows",
     "linear rope"],
)  # fmt: skip
def test_tokens_and_logits(name, compiled, folder_of, start_engine, make_scheduler, make_oracle):
    folder = folder_of(name)
    running = start_engine(
        folder, attention="native", fused="on", compiled=compiled, num_blocks=220
    )
    scheduler = make_scheduler(running, seed=3, leave=name == "windows")
    kernels.reset_counters()
    scheduler.drive(11, steps_min=50, active_max=6)
    counters = running.engine.counters()
    layers = sum(len(group.layer_indices) for group in running.facts.groups)
    assert counters.fused_layers == counters.attend_native == layers * counters.steps
    assert kernels.counters()["kv_write"] == 0
    assert kernels.counters()["norm_rope_write"] == layers * counters.steps
    oracle, compared = make_oracle(folder), 0
    for sequence in scheduler.sequences:
        generated = sequence.known - len(sequence.prompt)
        assert sequence.tokens == oracle.greedy(sequence.prompt, generated)
        if sequence.logits:
            expected = oracle.logits(sequence.tokens)
        for known, answered in sequence.logits.items():
            compared += 1
            difference = np.abs(np.frombuffer(answered, "<f4") - expected[known - 1]).max()
            assert difference <= 1e-4 * np.abs(expected[known - 1]).max()
    assert compared >= 3


def _operation_count(arrays: list[mx.array]) -> int:
    graph = io.StringIO()
    mx.export_to_dot(graph, *arrays)
    return graph.getvalue().count("shape=rectangle")


@pytest.mark.parametrize("name", ["qwen3", "llama"])
def test_a_layer_is_a_dozen_operations(name, checkpoint, start_engine, make_scheduler, monkeypatch):
    counts: list[int] = []
    launch = mx.async_eval

    def counted(arrays: list[mx.array]) -> None:
        counts.append(_operation_count(arrays))
        launch(arrays)

    for choice in ("off", "on"):
        running = start_engine(checkpoint(name), attention="native", fused=choice)
        scheduler = make_scheduler(running, seed=1, in_flight=1)
        for index in range(8):
            scheduler.add([1 + index, 2, 3], 3)
        scheduler.step(scheduler.sequences, chunk=8)
        with monkeypatch.context() as patched:
            patched.setattr(mx, "async_eval", counted)
            scheduler.step(scheduler.sequences, chunk=1)
    layers = len(running.facts.groups[0].layer_indices)
    built, fused = counts
    assert fused < built / 3
    # Nine, and a change of shape.
    assert fused <= 10 * layers + 40


@pytest.mark.parametrize("poison_pool", [False, True])
def test_weights_and_pool_are_held_once(poison_pool, checkpoint, start_engine):
    """Whatever warming up left behind: a handle of a pool that was replaced keeps it alive."""
    gc.collect()  # or what other tests left is freed in between
    mx.clear_cache()
    before = mx.get_active_memory()
    running = start_engine(
        checkpoint("qwen3"), attention="native", fused="on", poison_pool=poison_pool
    )
    plan, held = running.engine.memory_plan, mx.get_active_memory() - before
    # Frequencies and what allocation rounds up are beside weights and pool.
    assert 0 <= held - plan.pool_bytes - plan.weight_bytes <= 0.05 * plan.weight_bytes


def test_what_is_let_go_of_while_merging(checkpoint_writer, tmp_path):
    config = {**QWEN2, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 6}
    checkpoint = read_checkpoint(checkpoint_writer(tmp_path / "wide", config))
    model = build_model(checkpoint, mx.float32)
    install_seam(model)
    shape = probe(model)
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    fuse(model, "model", shape.layers)
    mx.eval(model.parameters())
    weights = checkpoint.weight_bytes(4)
    assert mx.get_active_memory() - before <= 1.02 * weights
    assert mx.get_peak_memory() - before <= 1.3 * weights


def test_what_can_not_be_fused_is_said_once(save_checkpoint, start_engine):
    other = {"rope_scaling": {"rope_type": "yarn", "factor": 4.0,
             "original_max_position_embeddings": 256}}  # fmt: skip
    folder = save_checkpoint("llama", **other)
    with structlog.testing.capture_logs() as logs:
        running = start_engine(folder, attention="native")
    said = [entry["reason"] for entry in logs if entry["event"] == "layers are not fused"]
    assert said == ["rope of kind YarnRoPE"]
    assert running.engine.counters().fused_layers == 0
    with pytest.raises(MlxrtError, match=r"fused: on, but .* rope of kind YarnRoPE"):
        start_engine(folder, attention="native", fused="on")


def test_the_gather_path_runs_mlx_lms_own_layers(checkpoint, start_engine):
    with pytest.raises(MlxrtError, match="can't be fused: attention takes the gather path"):
        start_engine(checkpoint("qwen3"), attention="gather", fused="on")
    running = start_engine(checkpoint("qwen3"), attention="gather")
    assert type(running.engine._assembled.runner._forward._model.model._inner) is not FusedStack


def test_kernels_that_refuse_leave_the_model_as_it_was(
    checkpoint, start_engine, make_scheduler, make_oracle, monkeypatch
):
    def refuse(*arguments: object, **options: object) -> object:
        raise RuntimeError("no kernel for heads of 32")

    with monkeypatch.context() as patched, structlog.testing.capture_logs() as logs:
        patched.setattr(kernels, "norm_rope_write", refuse)
        running = start_engine(checkpoint("qwen3"), attention="native")
    assert "no kernel for heads of 32" in {entry.get("reason") for entry in logs}
    scheduler = make_scheduler(running, seed=3, in_flight=1)
    sequence = scheduler.add([1, 2, 3], 6)
    while not sequence.finished:
        scheduler.step([sequence], chunk=3)
    assert sequence.tokens == make_oracle(checkpoint("qwen3")).greedy([1, 2, 3], 6)


def test_projections_of_different_kinds_are_not_merged():
    dense = nn.Linear(64, 32, bias=False)
    four, eight = (nn.QuantizedLinear(64, 32, bias=False, bits=bits) for bits in (4, 8))
    for pair, message in (
        ((dense, four), "Linear, 4 bits by 64|4 bits by 64, Linear"),
        ((four, eight), "4 bits by 64, 8 bits by 64"),
        ((dense, nn.Linear(64, 32)), "some have a bias"),
    ):
        with pytest.raises(NotFusedError, match=message):
            merged("q, k", pair)
