"""Every listed family over gRPC, on both attention paths: the reference scheduler's greedy tokens
are those of mlx-lm's dense run, and so are the logits that a step answers.
"""

from __future__ import annotations

import random

import numpy as np
import pytest
from mlxrt_client import Client, Scheduler, Session, messages
from mlxrt_client.v1 import StepRequest
from tiny_families import FAMILY_CONFIGS, TOLERANCE

from mlxrt.engine.engine_config import EngineConfig
from mlxrt.engine.mlx_engine import MlxEngine
from mlxrt.models.checkpoint import flat_config
from mlxrt.testing.server_thread import ServerThread

NEW_TOKENS = 34
BLOCK = 4


def _logits(session: Session, texts: list[list[int]], groups: int) -> list[np.ndarray]:
    """The logits after each text, all prefilled in one step."""
    step = StepRequest()
    for number, text in enumerate(texts, 1):
        count = -(-len(text) // BLOCK)
        tables = session.allocate_blocks(dict.fromkeys(range(groups), count))
        item = messages.chunk_item(number, len(text), sample=True)
        item.return_logits = True
        step.new_sequences.append(messages.new_sequence(number, text, tables))
        step.items.append(item)
    results = session.step(step).results
    session.free_sequences(range(1, len(texts) + 1), and_blocks=True)
    return [np.frombuffer(result.logits.data, "<f4") for result in results]


def _generate(session: Session, scheduler: Scheduler) -> list[tuple[list[int], list[int]]]:
    """Prompts and the tokens after each."""
    rng = random.Random(5)
    prompts = [[rng.randrange(160) for _ in range(rng.randint(1, 30))] for _ in range(20)]
    texts = {scheduler.add(prompt, NEW_TOKENS): (prompt, []) for prompt in prompts}
    for token in scheduler.run():
        assert token.error is None and token.token_id is not None
        texts[token.sequence_id][1].append(token.token_id)
    scheduler.close()
    return list(texts.values())


@pytest.mark.parametrize("path", ["gather", "native"])
@pytest.mark.parametrize("name", sorted(FAMILY_CONFIGS))
def test_tokens_and_logits(name, path, folder_of, make_oracle):
    config = EngineConfig(
        model=str(folder_of(name)), attention=path, block_size=BLOCK, num_blocks=41,
        max_step_rows=64, max_step_sequences=16, max_model_length=512, poison_pool=True,
    )  # fmt: skip
    engine = MlxEngine(config)
    with ServerThread(engine) as server, Client(server.address) as client:
        info, model = client.server_info(), client.model_info()
        with client.open_session() as session:
            scheduler = Scheduler(session, model, info.limits, step_rows_max=12)
            texts = _generate(session, scheduler)
            known = [prompt + tokens for prompt, tokens in texts[:2]]
            answered = _logits(session, known, len(model.groups))
        counters = engine.counters()
    _check_path(info, model, counters, name, path)
    done = scheduler.statistics
    assert done.step_count >= 200
    assert done.mixed_step_count >= 20
    assert done.preemption_count >= 3
    assert done.inflight_steps_max == 2
    oracle = make_oracle(folder_of(name))
    for prompt, tokens in texts:
        assert len(tokens) == NEW_TOKENS
        logits = oracle.logits(prompt + tokens[:-1])[len(prompt) - 1 :]
        chosen = np.take_along_axis(logits, np.array(tokens)[:, None], 1)[:, 0]
        allowed = TOLERANCE[path] * np.abs(logits).max()
        assert (logits.max(1) - chosen <= allowed).all()
    for text, logits in zip(known, answered, strict=True):
        wanted = oracle.logits(text)[-1]
        assert np.abs(logits - wanted).max() <= TOLERANCE[path] * np.abs(wanted).max()


def _check_path(info, model, counters, name: str, path: str) -> None:
    """The attention path was the one asked for in every layer and step; groups fit windows."""
    config = flat_config(FAMILY_CONFIGS[name])
    assert info.attention_path == path
    assert model.model_type == config["model_type"]
    assert model.vocabulary_size == 160
    assert model.max_model_length == 512
    layers = sum(len(group.layer_indices) for group in model.groups)
    attended = {"native": counters.attend_native, "gather": counters.attend_gather}
    assert attended.pop(path) == layers * counters.steps > 0
    assert set(attended.values()) == {0}
    windows = {group.window for group in model.groups if group.window}
    expected = {config["sliding_window"]} if len(model.groups) > 1 else set()
    assert windows == expected
