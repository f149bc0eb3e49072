"""vLLM's scheduler over a real server: every greedy token is mlx-lm's own."""

from __future__ import annotations

import pytest
from serving import BUNDLED
from workload import assert_greedy, executor_of, generate, lengths, prompts

REQUESTS = 200


@pytest.mark.parametrize("two_in_flight", [False, True])
def test_two_hundred_requests_in_a_small_pool(bundled_server, make_llm, two_in_flight):
    """Mixed steps, preemptions, prefix hits, and with async scheduling two steps in flight."""
    llm = make_llm(bundled_server, num_gpu_blocks_override=64, async_scheduling=two_in_flight)
    requests = prompts(3, REQUESTS, 4095)
    outputs = generate(llm, requests, lengths(4, REQUESTS))
    counts, executor = executor_of(llm).counts, executor_of(llm)
    assert executor.inflight_max == (2 if two_in_flight else 1)
    assert counts.mixed_steps > 100
    assert counts.preemptions > 0 and counts.resumptions == counts.preemptions
    assert counts.prefix_rows > 1000
    assert_greedy(BUNDLED, requests, outputs)
