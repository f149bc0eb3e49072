"""Texts of 20 windows over gRPC, by the reference scheduler, in a windowed group too small to hold
one of them whole: the tokens are those of mlx-lm's dense run and of a client that keeps all blocks.
"""

from __future__ import annotations

import random

import numpy as np
import pytest
from mlxrt_client import Client, Scheduler
from mlxrt_client.v1 import GetSessionResponse
from tiny_families import FAMILY_CONFIGS, TOLERANCE

from mlxrt.engine.engine_config import EngineConfig
from mlxrt.engine.mlx_engine import MlxEngine
from mlxrt.testing.server_thread import ServerThread

NAMES = ["cohere2", "exaone4", "gemma3_text", "gpt_oss"]
BLOCK = 4
ROWS = 12
PROMPT_LENGTHS = (60, 1, 23)


def _named(state: GetSessionResponse, group: int) -> int:
    """Blocks of a group that the server's tables name."""
    tables = [t for sequence in state.sequences for t in sequence.tables if t.group == group]
    return len({block_id for table in tables for block_id in table.block_ids if block_id})


def _generate(engine: MlxEngine, prompts: list[list[int]], length: int, *, keep: bool):
    """Texts of `length` tokens, the scheduler's statistics, the most blocks that tables of the
    windowed group named.

    Args:
        keep: hide the windows from the scheduler, so that it keeps all blocks.
    """
    named_most = 0
    with ServerThread(engine) as server, Client(server.address) as client:
        model = client.model_info()
        if keep:
            for group in model.groups:
                group.ClearField("window")
        with client.open_session() as session:
            limits = client.server_info().limits
            scheduler = Scheduler(session, model, limits, step_rows_max=ROWS)
            texts = {scheduler.add(prompt, length - len(prompt)): prompt for prompt in prompts}
            for count, token in enumerate(scheduler.run()):
                assert token.error is None and token.token_id is not None
                texts[token.sequence_id] = [*texts[token.sequence_id], token.token_id]
                if count % 50 == 0:
                    named_most = max(named_most, _named(session.state(tables=True), 1))
            scheduler.close()
            free = session.free_blocks({})
        assert free == {group.group: group.block_count - 1 for group in model.groups}
    return list(texts.values()), scheduler.statistics, named_most


@pytest.mark.parametrize("path", ["gather", "native"])
@pytest.mark.parametrize("name", NAMES)
def test_texts_of_twenty_windows(name, path, tmp_path, checkpoint_writer, make_oracle):
    window = FAMILY_CONFIGS[name]["sliding_window"]
    length, share = 20 * window, (window + ROWS - 3) // BLOCK + 2
    folder = checkpoint_writer(tmp_path, FAMILY_CONFIGS[name])
    rng = random.Random(11)
    prompts = [[rng.randrange(160) for _ in range(count)] for count in PROMPT_LENGTHS]
    texts = {}
    for keep, window_num_blocks in ((True, None), (False, 2 * share + 1)):
        engine = MlxEngine(
            EngineConfig(
                model=str(folder), attention=path, block_size=BLOCK, max_step_rows=64,
                max_step_sequences=16, max_model_length=length, poison_pool=True,
                num_blocks=2 * length // BLOCK, window_num_blocks=window_num_blocks,
            )
        )  # fmt: skip
        texts[keep], done, named_most = _generate(engine, prompts, length, keep=keep)
        counters = engine.counters()
        attended = {"native": counters.attend_native, "gather": counters.attend_gather}
        assert attended.pop(path) == FAMILY_CONFIGS[name]["num_hidden_layers"] * counters.steps > 0
        assert set(attended.values()) == {0}
        assert done.preemption_count >= 1 and done.mixed_step_count >= 5
        assert done.inflight_steps_max == 2
        assert (done.left_count > 0) != keep
        if keep:
            assert named_most > length // BLOCK
        else:
            assert 2 * share < length // BLOCK
            assert share < named_most <= done.blocks_used_max[1] <= 2 * share
    assert texts[True] == texts[False]
    oracle = make_oracle(folder)
    for prompt, text in zip(prompts, texts[False], strict=True):
        assert len(text) == length
        logits = oracle.logits(text)
        rows, chosen = logits[len(prompt) - 1 : -1], np.array(text[len(prompt) :])
        allowed = TOLERANCE[path] * np.abs(logits).max()
        assert (rows.max(1) - np.take_along_axis(rows, chosen[:, None], 1)[:, 0] <= allowed).all()
