"""The core against a plain model of it, under any order of calls, plans and outcomes.

It runs MLXRT_STATEFUL_RULES rules in all (100,000 unless set). MLXRT_STATEFUL_SEED sets the seed,
which is printed: the same rules every time unless set, others with MLXRT_STATEFUL_SEED=random. A
seed means the same wherever mlxrt is installed, but not to another version of Hypothesis.
MLXRT_STATEFUL_SHRINK makes Hypothesis shorten what failed, which takes minutes.
"""

from __future__ import annotations

import os
from random import Random

import pytest
from core_machine import CoreMachine, executed
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.internal.conjecture.providers import HypothesisProvider
from hypothesis.stateful import run_state_machine_as_test

RULES = int(os.environ.get("MLXRT_STATEFUL_RULES", "100000"))
CHOSEN = os.environ.get("MLXRT_STATEFUL_SEED", "1")
SEED = Random().randrange(2**32) if CHOSEN == "random" else int(CHOSEN)
RULES_PER_RUN = 500
PHASES = (
    (Phase.generate, Phase.shrink) if "MLXRT_STATEFUL_SHRINK" in os.environ else (Phase.generate,)
)

EVERY = [
    "committed",
    "failed",
    "sequence failed",
    "failed after it was handed out",
    "failed with another",
    "read what another wrote in the same step",
    "failed, then discarded",
    "overlapped",
    "replayed",
    "expired",
    "doomed by EPOCH_STALE",
    "doomed by PREDECESSOR_FAILED",
    "doomed by SESSION_UNKNOWN",
    "SESSION_UNKNOWN",
    "EPOCH_STALE",
    "SEQUENCE_UNKNOWN",
    "SEQUENCE_EXISTS",
    "BLOCK_NOT_LEASED",
    "BLOCK_IN_USE",
    "BLOCK_SHARED",
    "BLOCK_HOLE",
    "BLOCK_UNFILLED",
    "TABLE_TOO_SHORT",
    "SLOT_CONFLICT",
    "POSITION_INVALID",
    "POSITION_UNKNOWN",
    "FORWARD",
    "SAMPLING",
    "forward failed",
    "expired while it waits",
    "accepted drafts",
    "rejected drafts",
    "NO_FREE_BLOCKS",
    "TOO_MANY_INFLIGHT_STEPS",
    "STEP_GAP",
    "STEP_MISMATCH",
    "STEP_STALE",
    "LIMIT_EXCEEDED",
    "stepped back",
    "plain decodes",
    "restored",
]
"""What must have happened in a run of full length, each at least once."""


def test_the_core_does_what_the_model_says(monkeypatch: pytest.MonkeyPatch) -> None:
    # Hypothesis also draws numbers that it finds in the source files around it, so that a seed
    # would mean something else after any edit, and in an installed copy.
    monkeypatch.setattr(HypothesisProvider, "_maybe_draw_constant", lambda *_, **__: None)
    executed.clear()
    print(f"MLXRT_STATEFUL_SEED={SEED}")
    round_number = 0
    while executed["rules"] < RULES:
        missing = RULES - executed["rules"]
        run_state_machine_as_test(
            seed(SEED + round_number)(CoreMachine),
            settings=settings(
                max_examples=-(-missing // RULES_PER_RUN),
                stateful_step_count=RULES_PER_RUN,
                deadline=None,
                phases=PHASES,
                suppress_health_check=list(HealthCheck),
                database=None,
            ),
        )
        round_number += 1
    print(dict(executed.most_common()))
    rare = [name for name in EVERY if executed[name] == 0]
    assert not rare or RULES < 100_000, f"never happened: {rare}"
