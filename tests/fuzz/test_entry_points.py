"""Mutated requests at every entry point that takes a message: each is answered or refused by
reason, a refusal changes nothing, and no invariant breaks.

`MLXRT_FUZZ_INPUTS=10000000 pytest tests/fuzz` sends more of them, `MLXRT_FUZZ_SEED` others. Two
entry points at a time, each in a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

INPUTS = int(os.environ.get("MLXRT_FUZZ_INPUTS", "100000"))
SEED = int(os.environ.get("MLXRT_FUZZ_SEED", "0"))
FUZZER = Path(__file__).parent / "fuzzer.py"
RPCS = sorted(path.name for path in (FUZZER.parent / "corpus").iterdir())


def fuzz(rpc: str) -> Counter[str]:
    """What came back, and how often each."""
    command = [sys.executable, str(FUZZER), rpc, str(INPUTS), str(SEED)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return Counter(json.loads(done.stdout))


@pytest.fixture(scope="module")
def runs(request: pytest.FixtureRequest) -> Iterator[dict[str, Future[Counter[str]]]]:
    """Those of the entry points that were asked for."""
    mine = [item for item in request.session.items if item.path == request.path]
    asked = {item.callspec.params["rpc"] for item in mine if hasattr(item, "callspec")}
    with ThreadPoolExecutor(2) as pool:
        # SampleStep takes a third of the time: last, it would have one core to itself.
        yield {rpc: pool.submit(fuzz, rpc) for rpc in sorted(asked, key="SampleStep".__ne__)}
        pool.shutdown(cancel_futures=True)


def test_every_entry_point_has_seeds() -> None:
    assert len(RPCS) == 13
    assert {"Step", "SampleStep", "Execute", "Prefill", "Decode", "OpenSession"} <= set(RPCS)


@pytest.mark.parametrize("rpc", RPCS)
def test_nothing_gets_through(rpc: str, runs: dict[str, Future[Counter[str]]]) -> None:
    met = runs[rpc].result()
    assert met.total() == INPUTS
    assert met["accepted"] > 0
    assert met["MALFORMED_REQUEST"] + met["1"] > 0
    assert len(met) >= 4
