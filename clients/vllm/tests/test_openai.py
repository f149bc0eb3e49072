"""vLLM's OpenAI-compatible server over mlxrt, asked by the official client and by its benchmark."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import openai
import psutil
import pytest
from serving import BUNDLED, TESTS, dense_runs
from test_grammar import COMPACT, SCHEMA

START_TIMEOUT_S = 500.0
MODEL = "bundled"
PROMPT = "def fib(n):\n"


@pytest.fixture(scope="module")
def base_url(bundled_server: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`vllm serve` in processes of its own, with async scheduling, as it is by default."""
    log = tmp_path_factory.mktemp("vllm") / "log"
    vllm = str(Path(sys.executable).with_name("vllm"))
    command = [
        *(vllm, "serve", str(BUNDLED), "--served-model-name", MODEL),
        *("--distributed-executor-backend", "mlxrt_vllm.MlxrtExecutor"),
        *("--host", "127.0.0.1", "--port", "0", "--max-model-len", "1024"),
        *("--max-num-seqs", "32", "--chat-template", str(TESTS / "chat.jinja")),
        *("--structured-outputs-config", json.dumps(COMPACT)),
    ]
    environment = os.environ | {"VLLM_MLXRT_ADDRESS": bundled_server.address}
    environment.pop("VLLM_ENABLE_V1_MULTIPROCESSING")
    with log.open("wb") as out:
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=subprocess.STDOUT)
    try:
        yield _serving_url(process, log)
        assert "Traceback" not in log.read_text()
    finally:
        process.terminate()
        process.wait(timeout=START_TIMEOUT_S)


def _serving_url(process: subprocess.Popen[bytes], log: Path) -> str:
    """Waits until it serves; answers where, by the port that the system has given it."""
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while process.poll() is None and time.monotonic() < deadline_s:
        with contextlib.suppress(psutil.Error, OSError):
            for connection in psutil.Process(process.pid).net_connections("tcp4"):
                if connection.status == psutil.CONN_LISTEN:
                    url = f"http://127.0.0.1:{connection.laddr.port}"
                    urllib.request.urlopen(f"{url}/health", timeout=60).close()
                    return url
        time.sleep(0.5)
    raise RuntimeError(log.read_text())


@pytest.fixture
def client(base_url: str) -> Iterator[openai.OpenAI]:
    """The official client."""
    with openai.OpenAI(base_url=f"{base_url}/v1", api_key="none", max_retries=0) as made:
        yield made


def test_completions_with_logprobs(client):
    """A greedy completion is mlx-lm's, token by token, and so are its logprobs."""
    answer = client.completions.create(
        model=MODEL, prompt=PROMPT, max_tokens=24, temperature=0, logprobs=2,
        extra_body={"return_token_ids": True},
    )  # fmt: skip
    (choice,) = answer.choices
    prompt, tokens = list(choice.prompt_token_ids), list(choice.token_ids)
    (run,) = dense_runs(BUNDLED, [(prompt, tokens)])
    assert run["chosen"] == tokens and len(tokens) == 24
    assert choice.logprobs.token_logprobs == pytest.approx(
        run["logprobs"][len(prompt) - 1 :], abs=2e-4
    )
    assert answer.usage.completion_tokens == 24


def test_streaming_chat(client):
    """The pieces of a streamed chat are the whole of one that is not."""
    messages = [
        {"role": "system", "content": "Numbers."},
        {"role": "user", "content": "import random\n"},
    ]
    options = {"model": MODEL, "messages": messages, "max_tokens": 32, "temperature": 0}
    whole = client.chat.completions.create(**options).choices[0]
    pieces = list(client.chat.completions.create(**options, stream=True, logprobs=True))
    texts = [piece.choices[0].delta.content or "" for piece in pieces if piece.choices]
    assert len(texts) > 8
    assert "".join(texts) == whole.message.content
    assert pieces[-1].choices[0].finish_reason == whole.finish_reason == "length"


def test_json_schema(client):
    """A chat constrained to a schema: every answer that ends is of it."""
    schema = {"name": "item", "schema": SCHEMA, "strict": True}
    for seed in range(8):
        answer = client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "value = "}],
            response_format={"type": "json_schema", "json_schema": schema},
            max_tokens=128,
            temperature=0.5,
            seed=seed,
        )
        (choice,) = answer.choices
        assert choice.finish_reason == "stop"
        jsonschema.validate(json.loads(choice.message.content), SCHEMA)


def test_several_choices(client):
    """n > 1, drawn."""
    answer = client.completions.create(
        model=MODEL, prompt=PROMPT, max_tokens=16, temperature=1, n=3, seed=5
    )
    assert len({choice.text for choice in answer.choices}) == 3


def test_a_refused_parameter(client):
    """What mlxrt does not serve is a 400 that names it."""
    with pytest.raises(openai.BadRequestError, match="min_tokens"):
        client.completions.create(
            model=MODEL, prompt=PROMPT, max_tokens=4, extra_body={"min_tokens": 2}
        )


def test_the_serving_benchmark(base_url, tmp_path):
    """vLLM's own benchmark: 200 requests, 16 at a time, none fails."""
    command = [
        *(str(Path(sys.executable).with_name("vllm")), "bench", "serve", "--backend", "openai"),
        *("--base-url", base_url, "--endpoint", "/v1/completions", "--model", MODEL),
        *("--tokenizer", str(BUNDLED), "--dataset-name", "random", "--seed", "1"),
        *("--random-input-len", "64", "--random-output-len", "16", "--ignore-eos"),
        *("--num-prompts", "200", "--max-concurrency", "16", "--temperature", "0"),
        *("--save-result", "--result-dir", str(tmp_path), "--result-filename", "result.json"),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["completed"], result["failed"]) == (200, 0)
    assert result["total_output_tokens"] == 200 * 16
