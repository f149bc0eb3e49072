"""Connections that break, servers that restart, configurations that can't run."""

from __future__ import annotations

import signal
from typing import Any

import pytest
from mlxrt_client import RetryPolicy
from relay import Relay
from serving import BUNDLED, serving
from vllm import SamplingParams
from vllm.exceptions import VLLMValidationError
from workload import assert_greedy, executor_of, generate, lengths, prompts

from mlxrt_vllm.connection import ServerLostError


class Reached:
    """Where an engine is to look for a server."""

    def __init__(self, address: str) -> None:
        self.address = address


@pytest.mark.parametrize("two_in_flight", [False, True])
def test_broken_connections_mend(bundled_server, make_llm, tmp_path, two_in_flight):
    """The adapter repeats what is unanswered: no token is lost, doubled or wrong."""
    relay = Relay(tmp_path, bundled_server.address)
    llm = make_llm(Reached(relay.address), async_scheduling=two_in_flight)
    engine, executor = llm.llm_engine, executor_of(llm)
    requests, params = prompts(41, 24, 4095), lengths(42, 24)
    for index, (request, one) in enumerate(zip(requests, params, strict=True)):
        engine.add_request(str(index), {"prompt_token_ids": request}, one)
    outputs, steps = {}, 0
    while engine.has_unfinished_requests():
        steps += 1
        if steps % 20 == 0:
            relay.cut()
        for output in engine.step():
            outputs[int(output.request_id)] = list(output.outputs[0].token_ids)
    assert relay.cuts >= 3
    assert executor.connection.reconnections >= 3
    assert_greedy(BUNDLED, requests, [outputs[index] for index in range(len(requests))])
    relay.close()


@pytest.mark.parametrize(("two_in_flight", "count"), [(False, 60), (True, 200)])
def test_a_restarted_server(make_llm, two_in_flight, count):
    """Killed and started again in mid-run: vLLM's engine ends with an error that says so, what it
    had delivered is right, the new server knows nothing of it, and a new engine runs on it."""
    requests, params = prompts(43, count, 4095), lengths(44, count)
    delivered: dict[int, list[int]] = {}
    restarted = False
    with serving("--model", str(BUNDLED), "--num-blocks", "64") as server:
        llm = make_llm(server, async_scheduling=two_in_flight)
        engine, first = llm.llm_engine, executor_of(llm).connection.server.instance_id
        for index, (request, one) in enumerate(zip(requests, params, strict=True)):
            engine.add_request(str(index), {"prompt_token_ids": request}, one)
        with pytest.raises(ServerLostError) as caught:
            while engine.has_unfinished_requests():
                for output in engine.step():
                    delivered[int(output.request_id)] = list(output.outputs[0].token_ids)
                # Once: answers that had arrived by then are still delivered.
                if not restarted and executor_of(llm).counts.steps >= 2 * count:
                    restarted = True
                    server.stop(signal.SIGKILL)
                    server.start()
        engine.engine_core.shutdown()
        again = make_llm(server, async_scheduling=two_in_flight)
        second = executor_of(again).connection.server.instance_id
        assert first != second
        message = str(caught.value)
        assert "restarted" in message and first in message and second in message
        assert server.log.read_text().count('"event": "listening"') == 2
        outputs = generate(again, requests[:40], params[:40])
    done = [index for index, tokens in delivered.items() if len(tokens) == params[index].max_tokens]
    assert 0 < len(done) < count and len(delivered) > len(done)
    assert_greedy(BUNDLED, [requests[index] for index in delivered], list(delivered.values()))
    assert_greedy(BUNDLED, requests[:40], outputs)


def test_no_server(make_llm, tmp_path, monkeypatch):
    """Nobody at the address: one error that names it, after the patience given."""
    patience_s = []

    def policy(**options: Any) -> RetryPolicy:
        made = RetryPolicy(**options)
        patience_s.append(made.patience_s)
        return made

    monkeypatch.setattr("mlxrt_vllm.connection.RetryPolicy", policy)
    monkeypatch.setenv("VLLM_MLXRT_PATIENCE_S", "0.5")
    with pytest.raises(ServerLostError, match=r"nobody\.sock"):
        make_llm(Reached(f"unix:{tmp_path}/nobody.sock"))
    assert patience_s and set(patience_s) == {0.5}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"tensor_parallel_size": 2}, "tensor_parallel_size is 2"),
        ({"pipeline_parallel_size": 2}, "(?i)pipeline"),
        ({"enable_lora": True}, "LoRA"),
        ({"runner": "pooling", "convert": "embed"}, "pooling"),
        ({"distributed_executor_backend": "uni"}, "use mlxrt_vllm.MlxrtExecutor"),
        ({"enable_prompt_embeds": True}, "enable_prompt_embeds"),
        ({"logprobs_mode": "raw_logits"}, "raw_logits"),
        ({"block_size": 32}, "--block-size 32"),
        ({"max_model_len": 4096, "num_gpu_blocks_override": 9999}, "9999"),
        ({"max_logprobs": 100}, "--max-logprobs 100"),
        ({"max_logprobs": -1}, "--max-logprobs 4096"),
    ],
)
def test_refused_at_start(bundled_server, make_llm, options, reason):
    """What mlxrt does not execute is refused by name before anything runs."""
    with pytest.raises((ValueError, RuntimeError), match=reason):
        make_llm(bundled_server, **options)


@pytest.mark.parametrize(
    "params",
    [{"bad_words": ["def"]}, {"allowed_token_ids": [1, 2]}, {"min_tokens": 3}],
)
def test_refused_requests(bundled_server, make_llm, params):
    """What mlxrt does not serve is refused by name; the engine goes on."""
    llm = make_llm(bundled_server)
    with pytest.raises(VLLMValidationError, match=next(iter(params))):
        generate(llm, [[1, 2, 3]], SamplingParams(**params))
    assert len(generate(llm, [[1, 2, 3]], SamplingParams(max_tokens=4, ignore_eos=True))[0]) == 4
