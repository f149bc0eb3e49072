"""Where measurement decides between kernels and a gather: the one place that dispatch reads."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

CHUNK_ROWS_FLOOR = 33
"""Rows of one sequence in a step from which a GPU gathers its blocks for MLX's own attention.

See native/decisions/0001-layout-and-floors.md.
"""


def gathers_chunk(rows: NDArray[np.int32], seen: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Whether a GPU gathers, for sequences with `rows` rows [S] that see `seen` positions [S]."""
    return (rows >= CHUNK_ROWS_FLOOR) & (seen > 0)
