"""Each planted bug is found by the simulator within a minute; without one, nothing is."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

PATH = Path(__file__).parent / "planted_bugs.py"


def load() -> ModuleType:
    """The list, without planting anything."""
    spec = importlib.util.spec_from_file_location("planted_bugs", PATH)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["planted_bugs"] = module
    spec.loader.exec_module(module)
    return module


planted_bugs = load()


@pytest.mark.parametrize("name", planted_bugs.BUGS)
def test_it_is_found(name: str) -> None:
    found, words, took_s = planted_bugs.find(name)
    assert found, words
    assert took_s < planted_bugs.LIMIT_S


def test_there_are_twelve_at_least() -> None:
    assert len(planted_bugs.BUGS) >= 12
