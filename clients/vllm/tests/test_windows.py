"""A model with full and sliding-window layers: two KV groups on both sides."""

from __future__ import annotations

import json
import random
import subprocess
from pathlib import Path

import pytest
from serving import TESTS, server_python, serving
from workload import assert_greedy, executor_of, generate, lengths, prompts

REQUESTS = 200
WINDOW = 16
CONFIG = {
    "architectures": ["Gemma3ForCausalLM"],
    "model_type": "gemma3_text",
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-05,
    "vocab_size": 160,
    "max_position_embeddings": 1024,
    "rope_theta": 10000.0,
    "head_dim": 24,
    "query_pre_attn_scalar": 20,
    "sliding_window": WINDOW,
    "sliding_window_pattern": 3,
    "rope_local_base_freq": 5000.0,
    "hidden_activation": "gelu_pytorch_tanh",
}


@pytest.fixture(scope="module")
def windowed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random Gemma 3 of four layers, one of them full."""
    folder = tmp_path_factory.mktemp("windowed")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    out = folder / "checkpoint"
    command = [server_python(), "-P", str(TESTS / "checkpoint.py"), str(folder / "config.json")]
    subprocess.run([*command, str(out)], check=True)
    return out


@pytest.mark.parametrize("two_in_flight", [False, True])
def test_two_groups(windowed, make_llm, two_in_flight):
    """Blocks that leave the window are used anew at once, and every token is right."""
    options = ("--model", str(windowed), "--block-size", "8", "--num-blocks", "120")
    with serving(*options) as server:
        llm = make_llm(
            server,
            windowed,
            skip_tokenizer_init=True,
            async_scheduling=two_in_flight,
        )
        executor = executor_of(llm)
        groups = llm.llm_engine.engine_core.engine_core.scheduler.kv_cache_config.kv_cache_groups
        assert [getattr(g.kv_cache_spec, "sliding_window", None) for g in groups] == [None, WINDOW]
        requests = prompts(21, REQUESTS, 160)
        outputs = generate(llm, requests, lengths(22, REQUESTS))
    counts = executor.counts
    assert executor.inflight_max == (2 if two_in_flight else 1)
    assert counts.holes > 1000
    assert counts.mixed_steps > 100
    assert counts.preemptions > 0 and counts.resumptions == counts.preemptions
    assert counts.prefix_rows > 1000
    assert_greedy(windowed, requests, outputs)


@pytest.mark.parametrize("two_in_flight", [False, True])
def test_a_prefix_that_a_batch_mate_computes(windowed, make_llm, two_in_flight):
    """In both groups, of which one has only the window's last blocks of the prefix."""
    rng = random.Random(23)
    prefix = [rng.randrange(160) for _ in range(64)]
    requests = [[*prefix, *(rng.randrange(160) for _ in range(7))] for _ in range(8)]
    options = ("--model", str(windowed), "--block-size", "8", "--num-blocks", "240")
    with serving(*options) as server:
        llm = make_llm(
            server,
            windowed,
            skip_tokenizer_init=True,
            max_num_batched_tokens=256,
            async_scheduling=two_in_flight,
        )
        outputs = generate(llm, requests, lengths(24, len(requests)))
        counts = executor_of(llm).counts
    assert counts.same_step_prefixes == 7
    assert counts.prefix_rows == 7 * 64
    assert_greedy(windowed, requests, outputs)
