"""N-gram speculation: vLLM takes the executor's drafts, the server verifies them."""

from __future__ import annotations

import random

import pytest
from serving import BUNDLED
from vllm import SamplingParams
from workload import assert_greedy, executor_of, generate, lengths

REQUESTS = 200
SPECULATION = {
    "method": "ngram",
    "num_speculative_tokens": 4,
    "prompt_lookup_min": 2,
    "prompt_lookup_max": 4,
}


def repetitive(seed: int, count: int) -> list[list[int]]:
    """Prompts that say the same few tokens several times."""
    rng = random.Random(seed)
    made = []
    for _ in range(count):
        phrase = [rng.randrange(4095) for _ in range(rng.randint(3, 9))]
        made.append([rng.randrange(4095) for _ in range(rng.randint(0, 9))] + 4 * phrase)
    return made


def test_drafts_save_steps_and_change_no_token(bundled_server, make_llm):
    """200 requests with preemptions: a fifth of the drafts and more is right, steps are fewer."""
    requests, params = repetitive(11, REQUESTS), lengths(12, REQUESTS)
    plain = make_llm(bundled_server, num_gpu_blocks_override=64)
    expected = generate(plain, requests, params)
    plain_counts = executor_of(plain).counts
    plain.llm_engine.engine_core.shutdown()
    llm = make_llm(bundled_server, num_gpu_blocks_override=64, speculative_config=SPECULATION)
    outputs = generate(llm, requests, params)
    counts = executor_of(llm).counts
    assert counts.drafts > 1000
    assert counts.accepted_drafts >= 0.2 * counts.drafts
    assert counts.steps < plain_counts.steps
    assert counts.preemptions > 0 and counts.mixed_steps > 0
    assert_greedy(BUNDLED, requests, outputs)
    assert outputs == expected


@pytest.mark.parametrize("temperature", [0.7])
def test_drafts_change_no_draw(bundled_server, make_llm, temperature):
    """With a seed the tokens drawn are the same with drafts and without: rejection sampling."""
    requests = repetitive(13, 24)
    params = [
        SamplingParams(temperature=temperature, seed=seed, max_tokens=40, ignore_eos=True)
        for seed in range(len(requests))
    ]
    plain = make_llm(bundled_server)
    expected = generate(plain, requests, params)
    plain.llm_engine.engine_core.shutdown()
    llm = make_llm(bundled_server, speculative_config=SPECULATION)
    assert generate(llm, requests, params) == expected
    counts = executor_of(llm).counts
    assert 0 < counts.accepted_drafts < counts.drafts
