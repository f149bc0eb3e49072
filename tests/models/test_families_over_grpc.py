"""Greedy tokens of every listed family over gRPC, by the reference scheduler, are those of mlx-lm's
dense run.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from mlxrt_client import Client, Scheduler

from mlxrt.engine.engine_config import EngineConfig
from mlxrt.engine.mlx_engine import MlxEngine
from mlxrt.testing.server_thread import ServerThread

CONFIGS = json.loads((Path(__file__).parent / "families.json").read_text())
NEW_TOKENS = 40


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_greedy_tokens(name, tmp_path, checkpoint_writer, make_oracle):
    folder = checkpoint_writer(tmp_path, CONFIGS[name])
    config = EngineConfig(
        model=str(folder), attention="gather", block_size=4, num_blocks=41, max_step_rows=64,
        max_step_sequences=16, max_model_length=512, poison_pool=True,
    )  # fmt: skip
    engine = MlxEngine(config)
    rng = random.Random(5)
    prompts = [[rng.randrange(160) for _ in range(rng.randint(1, 30))] for _ in range(20)]
    with ServerThread(engine) as server, Client(server.address) as client:
        info, model = client.server_info(), client.model_info()
        assert info.attention_path == "gather"
        windows = {group.window for group in model.groups if group.window}
        with client.open_session() as session:
            scheduler = Scheduler(session, model, info.limits, step_rows_max=12)
            got = {scheduler.add(prompt, NEW_TOKENS): list(prompt) for prompt in prompts}
            for token in scheduler.run():
                assert token.error is None and token.token_id is not None
                got[token.sequence_id].append(token.token_id)
            scheduler.close()
    done = scheduler.statistics
    assert done.step_count >= 200
    assert done.mixed_step_count >= 20
    assert done.preemption_count >= 3
    assert done.inflight_steps_max == 2
    assert windows == ({CONFIGS[name]["sliding_window"]} if len(model.groups) > 1 else set())
    oracle = make_oracle(folder)
    for prompt, tokens in zip(prompts, got.values(), strict=True):
        assert len(tokens) == len(prompt) + NEW_TOKENS
        chosen = oracle.logits(tokens[:-1])[len(prompt) - 1 :].argmax(1)
        assert np.array_equal(chosen, tokens[len(prompt) :])
