"""Tokens/s of vLLM over a running mlxrt server, with one step in flight and with two.

Two engines in this process share the server's pool and take turns: 48 greedy requests of 64 tokens,
96 more each, 16 at a time. `VLLM_MLXRT_ADDRESS` says where; MODEL is the checkpoint served there.

`python clients/vllm/bench/two_in_flight.py MODEL [ROUNDS]`
"""

from __future__ import annotations

import os
import random
import statistics
import sys
import time
from typing import Any

os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_LOGGING_LEVEL="ERROR")

from vllm import LLM, SamplingParams

REQUESTS, PROMPT_TOKENS, NEW_TOKENS, VOCABULARY = 48, 64, 96, 4000


def engine(model: str, *, two: bool) -> Any:
    """An engine with async scheduling or without."""
    return LLM(
        model=model,
        distributed_executor_backend="mlxrt_vllm.MlxrtExecutor",
        max_model_len=512,
        max_num_seqs=16,
        num_gpu_blocks_override=600,
        enable_prefix_caching=False,
        async_scheduling=two,
    )


def tokens_per_s(llm: Any, requests: list[Any]) -> float:
    """Of one run over all requests."""
    params = SamplingParams(temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True, detokenize=False)
    started_s = time.perf_counter()
    outputs = llm.generate(requests, params, use_tqdm=False)
    count = sum(len(output.outputs[0].token_ids) for output in outputs)
    return count / (time.perf_counter() - started_s)


def main() -> None:
    """Prints each arm's rate in each round, the medians and their ratio."""
    model, rounds = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 5
    rng = random.Random(1)
    requests = [
        {"prompt_token_ids": [rng.randrange(VOCABULARY) for _ in range(PROMPT_TOKENS)]}
        for _ in range(REQUESTS)
    ]
    arms = {"one": engine(model, two=False), "two": engine(model, two=True)}
    rates: dict[str, list[float]] = {name: [] for name in arms}
    for llm in arms.values():
        tokens_per_s(llm, requests)
    for index in range(rounds):
        for name in sorted(arms, reverse=bool(index % 2)):
            rates[name].append(tokens_per_s(arms[name], requests))
    for name, found in rates.items():
        print(f"{name} in flight: {[round(rate) for rate in found]} tokens/s")
    pairs = [b / a for a, b in zip(rates["one"], rates["two"], strict=True)]
    print(f"two / one: {[round(pair, 2) for pair in pairs]}, median {statistics.median(pairs):.2f}")
    for llm in arms.values():
        llm.llm_engine.engine_core.shutdown()


if __name__ == "__main__":
    main()
