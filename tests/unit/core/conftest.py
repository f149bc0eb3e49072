"""Cores to test; the modules beside this file (`core_*.py`) are made importable for the tests in
this folder.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from core_client import FACTS, LIMITS, WINDOWED, Client

from mlxrt.core.core import Core


@pytest.fixture
def core() -> Core:
    """One full group, blocks of 4, 16 blocks."""
    return Core(FACTS, LIMITS)


@pytest.fixture
def client(core: Core) -> Client:
    """The only session."""
    return Client(core)


@pytest.fixture
def windowed() -> Client:
    """A session on a model with a full group and one of window 4."""
    return Client(Core(WINDOWED, LIMITS))
