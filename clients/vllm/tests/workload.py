"""Requests, and how they are run and judged."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from serving import dense_runs
from vllm import SamplingParams


def executor_of(llm: Any) -> Any:
    """The executor inside an engine of this process."""
    return llm.llm_engine.engine_core.engine_core.model_executor


def prompts(seed: int, count: int, vocabulary: int) -> list[list[int]]:
    """Prompts of 1 to 90 tokens; every other one begins with one of five prefixes."""
    rng = random.Random(seed)
    prefixes = [[rng.randrange(vocabulary) for _ in range(48)] for _ in range(5)]
    made = []
    for index in range(count):
        own = [rng.randrange(vocabulary) for _ in range(rng.randint(1, 42))]
        made.append(rng.choice(prefixes) + own if index % 2 else own)
    return made


def generate(llm: Any, requests: list[list[int]], params: Any) -> list[list[int]]:
    """The tokens of each request's first output."""
    outputs = llm.generate(
        [{"prompt_token_ids": tokens} for tokens in requests], params, use_tqdm=False
    )
    return [list(output.outputs[0].token_ids) for output in outputs]


def assert_greedy(model: Path, requests: list[list[int]], outputs: list[list[int]]) -> None:
    """Each output is what mlx-lm's dense run chooses."""
    runs = dense_runs(model, list(zip(requests, outputs, strict=True)))
    assert [run["chosen"] for run in runs] == outputs


def lengths(seed: int, count: int) -> list[Any]:
    """Greedy parameters with 20 to 60 tokens each, whatever the model says of the end."""
    rng = random.Random(seed)
    return [
        SamplingParams(
            temperature=0, max_tokens=rng.randint(20, 60), ignore_eos=True, detokenize=False
        )
        for _ in range(count)
    ]
