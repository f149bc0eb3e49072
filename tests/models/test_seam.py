"""The seam: installed once, taken out again, and without any effect on ordinary caches."""

from __future__ import annotations

import numpy as np
import pytest
from mlx_lm.models import base, llama, qwen3

from mlxrt.attention import install_seam, uninstall_seam


@pytest.fixture
def model(checkpoint, make_oracle):
    """A model whose classes' modules are as mlx-lm has them, before and after."""
    oracle = make_oracle(checkpoint("qwen3"))
    uninstall_seam(oracle.model)
    yield oracle
    uninstall_seam(oracle.model)


def test_installing_twice_and_taking_out(model):
    original = base.scaled_dot_product_attention
    assert qwen3.scaled_dot_product_attention is original
    assert install_seam(model.model) == ("mlx_lm.models.qwen3",)
    dispatcher = qwen3.scaled_dot_product_attention
    assert dispatcher is not original
    install_seam(model.model)
    assert qwen3.scaled_dot_product_attention is dispatcher
    assert base.scaled_dot_product_attention is original
    uninstall_seam(model.model)
    uninstall_seam(model.model)
    assert qwen3.scaled_dot_product_attention is original


def test_ordinary_caches_give_the_same_bits(model):
    prompt = list(range(20, 60))
    tokens, logits = model.greedy(prompt, 10), model.logits(prompt)
    install_seam(model.model)
    assert model.greedy(prompt, 10) == tokens
    assert np.array_equal(model.logits(prompt), logits)


def test_an_engine_without_the_seam_fails_its_steps(
    checkpoint, start_engine, make_scheduler, model
):
    running = start_engine(checkpoint("qwen3"), fused="off")
    uninstall_seam(model.model)
    scheduler = make_scheduler(running, seed=1)
    scheduler.add([1, 2, 3], 2)
    scheduler.step(scheduler.sequences, chunk=8)
    outcome = running.outcome()
    assert "0 of 3 layers attended" in outcome.failure.message


def test_other_families_are_left_alone(model):
    before = llama.scaled_dot_product_attention
    install_seam(model.model)
    assert llama.scaled_dot_product_attention is before
