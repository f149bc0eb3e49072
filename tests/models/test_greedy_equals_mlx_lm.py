"""Greedy tokens through scattered blocks, chunks, preemption, sharing and two steps in flight are
mlx-lm's own.
"""

from __future__ import annotations

import random

import numpy as np
import pytest

CASES = [
    ("qwen3", None),
    ("qwen3", 4),
    ("llama", None),
    ("llama_llama3_rope", None),
]
STEPS_MIN = 200


def _drive(scheduler, vocabulary_size: int, seed: int) -> int:
    """Runs a changing population of sequences to their goals; returns the number of steps."""
    rng = random.Random(seed)

    def prompt(low: int, high: int) -> list[int]:
        return [rng.randrange(vocabulary_size) for _ in range(rng.randint(low, high))]

    waiting = [(prompt(1, 40), rng.randint(20, 60)) for _ in range(16)]
    active = []
    steps = 0
    while waiting or active:
        if waiting and len(active) < 6 and rng.random() < 0.5:
            active.append(scheduler.add(*waiting.pop()))
        sources = [s for s in active if min(s.position, len(s.prompt)) >= 3]
        if sources and len(active) < 7 and rng.random() < 0.06:
            source = rng.choice(sources)
            length = rng.randint(2, min(source.position, len(source.prompt)) - 1)
            active.append(scheduler.share(source, length, prompt(1, 9), rng.randint(10, 30)))
        chosen = [s for s in active if rng.random() < 0.9]
        rng.shuffle(chosen)
        if not chosen:
            continue
        scheduler.step(chosen, chunk=rng.choice((1, 3, 7)), logits=rng.random() < 0.1)
        steps += 1
        for sequence in [s for s in active if s.finished]:
            active.remove(sequence)
            scheduler.retire(sequence)
        if active and rng.random() < 0.05:
            scheduler.preempt(rng.choice(active))
    while scheduler.waiting:
        scheduler.read()
    return steps


@pytest.mark.parametrize("path", ["gather", "native"])
@pytest.mark.parametrize(("name", "bits"), CASES)
def test_tokens_and_logits(name, bits, path, checkpoint, start_engine, make_scheduler, make_oracle):
    folder = checkpoint(name, bits)
    # Few blocks, so that each is used by many sequences; all begin as NaN.
    running = start_engine(folder, attention=path, num_blocks=220)
    scheduler = make_scheduler(running, seed=3)
    steps = _drive(scheduler, running.facts.vocabulary_size, seed=11)
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
        while pending := [s for s in scheduler.sequences if not s.finished]:
            scheduler.step(pending, chunk=8)
        while scheduler.waiting:
            scheduler.read()
        tokens.append([s.tokens for s in scheduler.sequences])
        running.engine.close()
    assert tokens[0] == tokens[1]
