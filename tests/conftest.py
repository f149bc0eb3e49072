"""Settings that every test runs under."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from mlxrt.testing import waiting

# Subprocesses import the installed package, never the source tree they happen to be started in.
os.environ["PYTHONSAFEPATH"] = "1"
# No test looks for a model on a hub.
os.environ["HF_HUB_OFFLINE"] = "1"
# How long examples take says how busy the machine is; and every run of the tests is the same one.
settings.register_profile(
    "mlxrt", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("mlxrt")


@pytest.fixture
def wait_until() -> Callable[..., None]:
    """`wait_until(condition)` waits for it, and fails where it does not come true."""
    return waiting.wait_until


@pytest.fixture
def socket_folder() -> Iterator[Path]:
    """A folder whose path is short: that of a unix socket has at most 103 bytes."""
    with tempfile.TemporaryDirectory(prefix="mlxrt") as folder:
        yield Path(folder)
