"""Exit codes of `mlxrt serve` and `mlxrt check`."""

from __future__ import annotations

import enum


class ExitCode(enum.IntEnum):
    """Why the process ended."""

    OK = 0
    CONFIG = 2
    MODEL = 3
    ABI = 4
    MEMORY = 5
    DEVICE_LOST = 6
