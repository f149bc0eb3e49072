"""The bundled model gives the committed greedy tokens, which mlx-lm alone computed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

GOLDEN = json.loads((Path(__file__).parent / "golden" / "bundled.json").read_text())


@pytest.mark.parametrize("path", ["gather", "native"])
def test_the_bundled_model(path, start_engine, make_scheduler):
    running = start_engine("bundled", attention=path, block_size=16, num_blocks=256)
    assert running.facts.fingerprint == GOLDEN["fingerprint"], "see golden/make_bundled.py"
    scheduler = make_scheduler(running, seed=2)
    cases = GOLDEN["cases"]
    for case in cases:
        scheduler.add(case["prompt"], len(case["tokens"]))
    scheduler.finish(chunk=50)
    for sequence, case in zip(scheduler.sequences, cases, strict=True):
        assert sequence.tokens == case["prompt"] + case["tokens"]
    counters = running.engine.counters()
    used = {"native": counters.attend_native, "gather": counters.attend_gather}
    assert used.pop(path) == counters.steps * len(running.facts.groups[0].layer_indices)
    assert not any(used.values())
