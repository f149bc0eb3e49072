"""Mutated requests at every entry point that takes a message: each is answered or refused by
reason, a refusal changes nothing, and no invariant breaks.

`MLXRT_FUZZ_INPUTS=10000000 pytest tests/fuzz` sends more of them, `MLXRT_FUZZ_SEED` others.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import structlog

from mlxrt.testing.simulation import silence_logs

INPUTS = int(os.environ.get("MLXRT_FUZZ_INPUTS", "100000"))
SEED = int(os.environ.get("MLXRT_FUZZ_SEED", "0"))
CORPUS = Path(__file__).parent / "corpus"
RPCS = sorted(path.name for path in CORPUS.iterdir())


def load() -> ModuleType:
    """The fuzzer beside this file."""
    spec = importlib.util.spec_from_file_location("fuzzer", Path(__file__).parent / "fuzzer.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fuzzer"] = module
    spec.loader.exec_module(module)
    return module


fuzzer = load()


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    before = structlog.get_config()
    silence_logs()
    yield
    structlog.configure(**before)


def test_every_entry_point_has_seeds() -> None:
    assert len(RPCS) == 13
    assert {"Step", "SampleStep", "Execute", "Prefill", "Decode", "OpenSession"} <= set(RPCS)


@pytest.mark.parametrize("rpc", RPCS)
def test_nothing_gets_through(rpc: str) -> None:
    met = fuzzer.fuzz(rpc, INPUTS, SEED)
    assert met.total() == INPUTS
    assert met["accepted"] > 0
    assert met["MALFORMED_REQUEST"] + met["1"] > 0
    assert len(met) >= 4
