"""Every listed family gives mlx-lm's numbers: bit for bit on the gather path, within 1e-4 of the
largest logit on the native one, over at least 100 steps that mix chunks and decodes over scattered
blocks of a pool full of NaN, with preemption, resumption, shared prefixes and two steps in flight.

`families.json` has a tiny config for each, with that family's own fields. The oracle is a dense run
of mlx-lm over what was generated: each token must be the one of the largest logit.
"""

from __future__ import annotations

import numpy as np
import pytest
from tiny_families import FAMILY_CONFIGS, TOLERANCE

from mlxrt.core.model import GroupKind
from mlxrt.models import FAMILIES

WINDOWED = ["gemma4_text", "llama", "mimo_v2_flash", "olmo3"]
"""Others are in test_windows_over_grpc.py."""
STEPS_MIN = 100


def test_all_are_compared():
    assert sorted(FAMILY_CONFIGS) == sorted(FAMILIES)
    assert len({family.module_name for family in FAMILIES.values()}) >= 20


def _compare(scheduler, oracle, path: str) -> None:
    """Tokens and answered logits against dense runs."""
    answered = 0
    for sequence in scheduler.sequences:
        dense = oracle.logits(sequence.tokens)
        allowed = TOLERANCE[path] * np.abs(dense).max()
        rows = dense[len(sequence.prompt) - 1 : -1]
        chosen = np.take_along_axis(
            rows, np.array(sequence.tokens)[len(sequence.prompt) :, None], 1
        )
        assert (rows.max(1) - chosen[:, 0] <= allowed).all()
        if path == "gather":
            assert (rows.argmax(1) == sequence.tokens[len(sequence.prompt) :]).all()
        for known, logits in sequence.logits.items():
            answered += 1
            assert np.abs(np.frombuffer(logits, "<f4") - dense[known - 1]).max() <= allowed
    assert answered >= 10


@pytest.mark.parametrize("path", ["gather", "native"])
@pytest.mark.parametrize("name", sorted(FAMILY_CONFIGS))
def test_tokens_and_logits(name, path, folder_of, start_engine, make_scheduler, make_oracle):
    folder = folder_of(name)
    running = start_engine(folder, attention=path, num_blocks=150)
    scheduler = make_scheduler(running, seed=3)
    steps = scheduler.drive(7, steps_min=STEPS_MIN)
    counters = running.engine.counters()
    layers = sum(len(group.layer_indices) for group in running.facts.groups)
    attended = {"native": counters.attend_native, "gather": counters.attend_gather}
    assert attended.pop(path) == layers * steps
    assert set(attended.values()) == {0}
    assert steps >= STEPS_MIN
    for event in ("shared", "preempted", "recycled", "mixed", "decode", "chunk"):
        assert scheduler.seen[event] >= 3, event
    _compare(scheduler, make_oracle(folder), path)


@pytest.mark.parametrize("path", ["gather", "native"])
@pytest.mark.parametrize("name", WINDOWED)
def test_blocks_that_left_the_window_are_given_back(
    name, path, folder_of, start_engine, make_scheduler, make_oracle
):
    """On a sequence 20 windows long; the blocks go to the other sequence meanwhile."""
    folder = folder_of(name)
    running = start_engine(folder, attention=path, num_blocks=220)
    groups = running.facts.groups
    assert [group.kind for group in groups] == [GroupKind.FULL, GroupKind.WINDOW]
    window, size = groups[1].window, running.facts.block_size
    assert window == FAMILY_CONFIGS[name]["sliding_window"]
    tokens = {}
    for leave in (False, True):
        scheduler = make_scheduler(running, seed=5, leave=leave)
        scheduler.ticket = 1000 * leave
        for sequence in ([9, 8, 7], list(range(1, 40))):
            scheduler.add(sequence, 20 * window - len(sequence)).handle += 10 * leave
        scheduler.finish(chunk=5)
        tokens[leave] = [s.tokens for s in scheduler.sequences]
        for sequence in scheduler.sequences:
            scheduler.retire(sequence)
        scheduler.submit([])
        scheduler.waiting.clear()
        running.outcome()
        bound = 2 * (-(-(window + 5) // size) + 2)
        assert (scheduler.used_max[1] <= bound) == leave
        assert scheduler.used_max[0] == 2 * (20 * window // size)
        assert (scheduler.seen["left"] > 2 * 18 * window // size) == leave
    assert tokens[True] == tokens[False]
    assert len(tokens[True][0]) == 20 * window
    dense = make_oracle(folder)
    for text, start in zip(tokens[True], (3, 39), strict=True):
        logits = dense.logits(text)
        rows = logits[start - 1 : -1]
        chosen = np.take_along_axis(rows, np.array(text)[start:, None], 1)[:, 0]
        assert (rows.max(1) - chosen <= TOLERANCE[path] * np.abs(logits).max()).all()
