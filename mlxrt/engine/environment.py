"""What MLX reads from the environment when it is loaded. Imports no mlx."""

from __future__ import annotations

import os

_BUFFER_MIB = "1000000"


def prepare_environment() -> None:
    """Sets, unless the user has, what MLX reads at its import; call it before.

    Each use of a pool array counts with the array's whole size towards the limit at which MLX
    commits its command buffer: with the default limit a large pool forces a commit in every layer.
    """
    os.environ.setdefault("MLX_MAX_MB_PER_BUFFER", _BUFFER_MIB)
