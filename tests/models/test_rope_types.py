"""Each rope type that is served gives mlx-lm's logits, bit for bit on the gather path."""

from __future__ import annotations

import numpy as np
import pytest

from mlxrt.core.sampling import GREEDY
from mlxrt.core.step import Entry, Registration, StepPlan, TableUpdate, TokenSource

SCALINGS = {
    "linear": {"type": "linear", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
    "longrope": {
        "rope_type": "longrope",
        "short_factor": [1.0] * 16,
        "long_factor": [1.0 + 0.2 * index for index in range(16)],
        "original_max_position_embeddings": 32,
    },
}
PROMPT = [(7 * index * index + 3) % 280 for index in range(70)]


@pytest.mark.parametrize("name", ["llama", "qwen3"])
@pytest.mark.parametrize("kind", sorted(SCALINGS))
def test_logits(kind, name, save_checkpoint, start_engine, make_oracle):
    folder = save_checkpoint(name, rope_scaling=SCALINGS[kind])
    expected = make_oracle(folder).logits(PROMPT)
    for path in ("gather", "native"):
        running = start_engine(folder, attention=path, accept_dropped_semantics=True)
        for ticket, (start, end) in enumerate(((0, 33), (33, 69), (69, 70))):
            plan = StepPlan(ticket)
            if not start:
                plan.registrations = [Registration(1, PROMPT, GREEDY, 0)]
                blocks = [5, 30, 7, *range(40, 55)]
                plan.table_updates = [TableUpdate(1, 0, 0, blocks, len(blocks))]
            plan.entries = [
                Entry(1, start, end - start, TokenSource.REGISTERED, (), end == 70, True)
            ]
            row = running.run(plan).entry_rows[0]
            logits = np.frombuffer(row.logits, "<f4")
            if path == "gather":
                assert np.array_equal(logits, expected[end - 1])
            else:
                assert np.abs(logits - expected[end - 1]).max() <= 1e-4 * np.abs(expected).max()
        running.engine.close()


def test_the_scalings_differ(save_checkpoint, make_oracle):
    plain = make_oracle(save_checkpoint("llama")).logits(PROMPT)
    for scaling in SCALINGS.values():
        scaled = make_oracle(save_checkpoint("llama", rope_scaling=scaling)).logits(PROMPT)
        assert np.abs(scaled - plain).max() > 0.01
