"""Logprobs of the prompt through core and engine, against the log softmax of mlx-lm's dense run."""

from __future__ import annotations

from collections.abc import Iterator

import mlx.core as mx
import numpy as np
import pytest

from mlxrt.core.model import Limits
from mlxrt.core.sampling import GREEDY, Sampling
from mlxrt.core.step import Item, NewSequence, PromptLogprobs, TokenSource
from mlxrt.engine.engine_config import EngineConfig
from mlxrt.engine.mlx_engine import MlxEngine
from mlxrt.engine.prompt_rows import CHUNK
from mlxrt.errors import Reason
from mlxrt.testing.local_runner import LocalRunner

PROMPT = np.random.default_rng(5).integers(0, 64, 2 * CHUNK + 30).tolist()


@pytest.fixture(params=["gather", "native"])
def local(request, checkpoint) -> Iterator[LocalRunner]:
    """A runner over a random model on either path; its pool starts as NaN."""
    config = EngineConfig(
        model=str(checkpoint("qwen3")), attention=request.param, block_size=4, num_blocks=256,
        max_model_length=256, poison_pool=True,
    )  # fmt: skip
    runner = LocalRunner(MlxEngine(config), Limits(max_model_length=256))
    yield runner
    runner.close()


@pytest.fixture
def wanted(make_oracle, checkpoint) -> np.ndarray:
    """[n, V]: log softmax after each token of the prompt."""
    logits = make_oracle(checkpoint("qwen3")).logits(PROMPT).astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def new(local: LocalRunner, sequence_id: int, top: int | None, rules: Sampling = GREEDY):
    blocks = local.allocate(len(PROMPT) // 4 + 4)
    return NewSequence(
        sequence_id, PROMPT, {0: blocks}, rules, seed=3, prompt_top_logprobs=top
    )


def rows(sequence_id: int, count: int, start: int | None = None, **more: object) -> Item:
    return Item(sequence_id, count, start, TokenSource.REGISTERED, **more)


def check(found: PromptLogprobs, first: int, count: int, top: int, wanted: np.ndarray) -> None:
    """Compares tokens `first` to `first + count - 1` with mlx-lm."""
    assert (found.first_position, len(found.logprobs), found.top_count) == (first, count, top)
    here = wanted[first - 1 : first - 1 + count]
    tokens = PROMPT[first : first + count]
    own = here[np.arange(count), tokens]
    np.testing.assert_allclose(found.logprobs, own, atol=1e-4)
    assert found.ranks == (1 + (here > own[:, None]).sum(axis=1)).tolist()
    ids = np.array(found.top_ids, np.int64).reshape(count, top)
    values = np.array(found.top_logprobs).reshape(count, top)
    best = -np.sort(-here, axis=1)[:, :top]
    np.testing.assert_allclose(values, best, atol=1e-4)
    np.testing.assert_allclose(np.take_along_axis(here, ids, axis=1), best, atol=1e-4)


@pytest.mark.parametrize("top", [0, 1, 5])
def test_a_whole_prompt(local: LocalRunner, wanted: np.ndarray, top: int) -> None:
    reply = local.run(
        new_sequences=[new(local, 1, top)], items=[rows(1, len(PROMPT), sample=True)]
    )
    row = reply.items[0].row
    check(row.prompt, 1, len(PROMPT) - 1, top, wanted)
    assert row.token == int(wanted[-1].argmax())
    counters = local._engine.counters()
    assert counters.async_evals == counters.steps == 1
    assert local.run(decode_ids=[1]).items == []


def test_chunks_mixed_with_others(local: LocalRunner, wanted: np.ndarray) -> None:
    """A prompt in chunks, beside a decode and a prompt that asks for nothing."""
    local.run(new_sequences=[new(local, 2, None)], items=[rows(2, len(PROMPT), sample=True)])
    local.run(new_sequences=[new(local, 1, 2), new(local, 3, None)])
    start = 0
    for count in (1, 70, 3, len(PROMPT) - 74):
        last = start + count == len(PROMPT)
        reply = local.run(
            decode_ids=[2], items=[rows(3, 5), rows(1, count, sample=last)]
        )
        assert reply.items[0].row.prompt is None
        check(reply.items[1].row.prompt, start + 1, count - last, 2, wanted)
        start += count
    assert reply.items[1].row.token == int(wanted[-1].argmax())


def test_depths_differ_in_one_step(local: LocalRunner, wanted: np.ndarray) -> None:
    reply = local.run(
        new_sequences=[new(local, 1, 0), new(local, 2, 4)],
        items=[rows(1, 20, return_logits=True), rows(2, 30)],
    )
    check(reply.items[0].row.prompt, 1, 20, 0, wanted)
    check(reply.items[1].row.prompt, 1, 30, 4, wanted)
    logits = np.frombuffer(reply.items[0].row.logits, "<f4")
    assert int(logits.argmax()) == int(wanted[19].argmax())


def test_more_alternatives_than_tokens(local: LocalRunner, wanted: np.ndarray) -> None:
    size = local.facts.vocabulary_size
    reply = local.run(new_sequences=[new(local, 1, size + 9)], items=[rows(1, 5)])
    check(reply.items[0].row.prompt, 1, 5, size, wanted)


def test_deferred_sampling_answers_them_too(local: LocalRunner, wanted: np.ndarray) -> None:
    rules = Sampling(temperature=1.0, top_k=3)
    local.submit(
        new_sequences=[new(local, 1, 1, rules)],
        items=[rows(1, len(PROMPT), sample=True)],
        deferred=True,
    )
    local.sample()
    check(local.finish().items[0].row.prompt, 1, len(PROMPT) - 1, 1, wanted)
    local.submit(new_sequences=[new(local, 2, 1)], items=[rows(2, 9)], deferred=True)
    local.sample()
    check(local.finish().items[0].row.prompt, 1, 9, 1, wanted)


def test_only_rows_that_run_answer(local: LocalRunner, wanted: np.ndarray) -> None:
    """A shared prefix is not described; rows run anew are described anew."""
    first = new(local, 1, 1)
    local.run(new_sequences=[first], items=[rows(1, len(PROMPT), sample=True)])
    shared = new(local, 2, 1)
    shared.tables[0][:2] = first.tables[0][:2]
    reply = local.run(new_sequences=[shared], items=[rows(2, 10, 8)])
    check(reply.items[0].row.prompt, 9, 10, 1, wanted)
    again = rows(2, len(PROMPT), 0, sample=True)
    reply = local.run(releases=[1], items=[again])
    check(reply.items[0].row.prompt, 1, len(PROMPT) - 1, 1, wanted)
    # Explicit tokens end what is known of the prompt: the last of them predicts nothing.
    explicit = Item(2, 3, 4, TokenSource.EXPLICIT, PROMPT[4:7], sample=True)
    check(local.run(items=[explicit]).items[0].row.prompt, 5, 2, 1, wanted)


def test_a_prompt_of_nan_fails_its_sequence_alone(checkpoint, tmp_path, make_oracle) -> None:
    """One token's embedding is NaN; a chunk with it fails, though none of its rows samples."""
    source = checkpoint("llama")
    weights = mx.load(str(source / "model.safetensors"))
    embedding = np.array(weights["model.embed_tokens.weight"])
    embedding[13] = np.nan
    weights["model.embed_tokens.weight"] = mx.array(embedding)
    mx.save_safetensors(str(tmp_path / "model.safetensors"), weights)
    (tmp_path / "config.json").write_text((source / "config.json").read_text())
    config = EngineConfig(model=str(tmp_path), block_size=4, num_blocks=64, poison_pool=True)
    local = LocalRunner(MlxEngine(config), Limits())
    prompts = [4, 8, 13, 15, 16], [4, 8, 14, 15, 16]
    news = [
        NewSequence(i, prompt, {0: local.allocate(2)}, prompt_top_logprobs=0)
        for i, prompt in enumerate(prompts, 1)
    ]
    bad, good = local.run(new_sequences=news, items=[rows(1, 4), rows(2, 4)]).items
    local.close()
    assert bad.row.failure.reason is Reason.NON_FINITE_LOGITS and bad.row.prompt is None
    logits = make_oracle(source).logits(prompts[1]).astype(np.float64)
    own = logits[range(4), prompts[1][1:]] - np.log(np.exp(logits[:4]).sum(axis=1))
    np.testing.assert_allclose(good.row.prompt.logprobs, own, atol=1e-4)
