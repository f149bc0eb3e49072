"""Greedy tokens through scattered blocks, chunks, preemption, sharing and two steps in flight are
mlx-lm's own.
"""

from __future__ import annotations

import numpy as np
import pytest

CASES = [
    ("qwen3", None),
    ("qwen3", 4),
    ("llama", None),
    ("llama_llama3_rope", None),
]
STEPS_MIN = 200


@pytest.mark.parametrize("path", ["gather", "native"])
@pytest.mark.parametrize(("name", "bits"), CASES)
def test_tokens_and_logits(name, bits, path, checkpoint, start_engine, make_scheduler, make_oracle):
    folder = checkpoint(name, bits)
    # Few blocks, so that each is used by many sequences; all begin as NaN.
    running = start_engine(folder, attention=path, num_blocks=220)
    scheduler = make_scheduler(running, seed=3)
    steps = scheduler.drive(11, steps_min=STEPS_MIN, active_max=6)
    counters = running.engine.counters()
    running.engine.close()

    assert steps >= STEPS_MIN
    for event in ("shared", "preempted", "recycled", "mixed", "decode", "chunk"):
        assert scheduler.seen[event] >= 5, event
    layers = len(running.facts.groups[0].layer_indices)
    attended = {"native": counters.attend_native, "gather": counters.attend_gather}
    assert attended.pop(path) >= layers * (steps - 1)
    assert set(attended.values()) == {0}
    assert counters.async_evals == counters.steps == steps

    oracle = make_oracle(folder)
    compared = 0
    for sequence in scheduler.sequences:
        generated = sequence.known - len(sequence.prompt)
        assert sequence.tokens == oracle.greedy(sequence.prompt, generated)
        if not sequence.logits:
            continue
        expected = oracle.logits(sequence.tokens)
        for known, answered in sequence.logits.items():
            compared += 1
            _compare(np.frombuffer(answered, "<f4"), expected[known - 1], path)
    assert compared >= 5


def _compare(answered, expected, path: str) -> None:
    if path == "gather":
        assert np.array_equal(answered, expected)
    else:
        assert np.abs(answered - expected).max() <= 1e-4 * np.abs(expected).max()


def test_one_step_in_flight_gives_the_same(checkpoint, start_engine, make_scheduler):
    folder = checkpoint("qwen3")
    tokens = []
    for in_flight in (1, 2):
        running = start_engine(folder, attention="native")
        scheduler = make_scheduler(running, seed=5, in_flight=in_flight)
        for length in (3, 17, 30):
            scheduler.add(list(range(1, length)), 12)
        scheduler.finish(chunk=8)
        tokens.append([s.tokens for s in scheduler.sequences])
        running.engine.close()
    assert tokens[0] == tokens[1]
