"""Sampling, logprobs, and requests that share what is computed in the same step."""

from __future__ import annotations

import random

import pytest
from serving import BUNDLED, dense_runs
from vllm import SamplingParams
from workload import assert_greedy, executor_of, generate, lengths, prompts


@pytest.mark.parametrize("two_in_flight", [False, True])
def test_a_prefix_that_a_batch_mate_computes(bundled_server, make_llm, two_in_flight):
    """vLLM starts requests behind a prefix of the same step: all of them run in that step."""
    rng = random.Random(31)
    prefix = [rng.randrange(4095) for _ in range(64)]
    requests = [[*prefix, *(rng.randrange(4095) for _ in range(7))] for _ in range(8)]
    llm = make_llm(bundled_server, max_num_batched_tokens=256, async_scheduling=two_in_flight)
    outputs = generate(llm, requests, lengths(32, len(requests)))
    counts = executor_of(llm).counts
    assert counts.same_step_prefixes == 7
    assert counts.prefix_rows == 7 * 64
    assert executor_of(llm).inflight_max == (2 if two_in_flight else 1)
    assert_greedy(BUNDLED, requests, outputs)


@pytest.mark.parametrize("two_in_flight", [False, True])
def test_logprobs_are_mlx_lms(bundled_server, make_llm, two_in_flight):
    """Of the sampled token, with its rank, and of the alternatives; none where none are asked."""
    requests = prompts(33, 24, 4095)
    asked = [None, 0, 1, 3]
    params = [
        SamplingParams(
            temperature=0.9, seed=i, max_tokens=12, ignore_eos=True, logprobs=asked[i % 4]
        )
        for i in range(len(requests))
    ]
    llm = make_llm(bundled_server, async_scheduling=two_in_flight)
    outputs = llm.generate([{"prompt_token_ids": r} for r in requests], params, use_tqdm=False)
    tokens = [list(output.outputs[0].token_ids) for output in outputs]
    runs = dense_runs(BUNDLED, list(zip(requests, tokens, strict=True)))
    for index, (output, run) in enumerate(zip(outputs, runs, strict=True)):
        logprobs = output.outputs[0].logprobs
        if asked[index % 4] is None:
            assert logprobs is None
            continue
        expected = run["logprobs"][len(requests[index]) - 1 :]
        for token, chosen, entry, value in zip(
            tokens[index], run["chosen"], logprobs, expected, strict=True
        ):
            assert entry[token].logprob == pytest.approx(value, abs=2e-4)
            if asked[index % 4]:
                assert entry[chosen].rank == 1
                assert (entry[token].rank == 1) == (token == chosen)
                assert asked[index % 4] <= len(entry) <= asked[index % 4] + 1


@pytest.mark.parametrize("two_in_flight", [False, True])
def test_prompt_logprobs_are_mlx_lms(bundled_server, make_llm, two_in_flight):
    """Of every prompt token but the first, over chunks and preemptions, with alternatives."""
    requests = prompts(38, 40, 4095)
    asked = [None, 0, 2]
    params = [
        SamplingParams(temperature=0, max_tokens=24, ignore_eos=True, prompt_logprobs=asked[i % 3])
        for i in range(len(requests))
    ]
    llm = make_llm(bundled_server, num_gpu_blocks_override=40, async_scheduling=two_in_flight)
    outputs = llm.generate([{"prompt_token_ids": r} for r in requests], params, use_tqdm=False)
    assert executor_of(llm).counts.preemptions > 0
    runs = dense_runs(BUNDLED, [(r, [0]) for r in requests])
    for index, (request, output) in enumerate(zip(requests, outputs, strict=True)):
        if asked[index % 3] is None:
            assert output.prompt_logprobs is None
            continue
        first, *rest = output.prompt_logprobs
        assert first is None and len(rest) == len(request) - 1
        for token, entry, value in zip(request[1:], rest, runs[index]["logprobs"], strict=False):
            assert entry[token].logprob == pytest.approx(value, abs=2e-4)
            ranks = sorted(alternative.rank for alternative in entry.values())
            assert ranks[: asked[index % 3]] == [1, 2][: asked[index % 3]]
    tokens = [list(output.outputs[0].token_ids) for output in outputs]
    assert_greedy(BUNDLED, requests, tokens)


def test_several_outputs_and_seeds(bundled_server, make_llm):
    """n > 1 gives different texts; the same seed the same one, whatever the batch and the steps."""
    (prompt,) = prompts(35, 1, 4095)
    params = SamplingParams(n=4, temperature=1.0, seed=7, max_tokens=24, ignore_eos=True)
    one = make_llm(bundled_server)
    request = [{"prompt_token_ids": prompt}]
    texts = [tuple(o.token_ids) for o in one.generate(request, params, use_tqdm=False)[0].outputs]
    assert len(set(texts)) == 4
    one.llm_engine.engine_core.shutdown()
    two = make_llm(bundled_server, async_scheduling=True)
    crowd = [{"prompt_token_ids": other} for other in prompts(36, 12, 4095)]
    again = two.generate([*crowd, *request], params, use_tqdm=False)[-1]
    assert [tuple(output.token_ids) for output in again.outputs] == texts


def test_sampling_rules_reach_the_server(bundled_server, make_llm):
    """Each rule changes what it is to change."""
    (prompt,) = prompts(37, 1, 4095)
    llm = make_llm(bundled_server)

    def run(**rules):
        params = SamplingParams(max_tokens=24, ignore_eos=True, **({"temperature": 0} | rules))
        return generate(llm, [prompt], params)[0]

    greedy = run()
    assert run(temperature=1, top_k=1) == greedy
    assert run(temperature=1, top_p=1e-6) == greedy
    assert run(temperature=1, min_p=1) == greedy
    assert run(logit_bias={greedy[0]: -100})[0] != greedy[0]
    assert set(run(logit_bias={11: 100})) == {11}
    assert run(repetition_penalty=50) != greedy
    assert run(presence_penalty=2, frequency_penalty=2) != greedy
