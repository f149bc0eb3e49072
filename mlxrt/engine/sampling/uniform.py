"""The random number of a draw: a function of the sequence's seed and the new token's position."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)


def uniform(
    seed: npt.NDArray[np.uint64], position: npt.NDArray[np.int64]
) -> npt.NDArray[np.float32]:
    """Returns `u(seed, position)` of mlxrt/v1/sampling.proto, exactly, for each pair.

    Args:
        seed: [N] uint64.
        position: [N] int64, 0 or more: the position that the new token takes.

    Returns:
        [N] float32, multiples of 2^-24, 0 included, 1 excluded.

    Source: SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, OOPSLA
    2014).
    """
    steps = np.atleast_1d(position).astype(np.uint64) + np.uint64(1)
    state = _mix(np.atleast_1d(seed)) + steps * _GAMMA
    top = _mix(state) >> np.uint64(40)
    # 24 bits are exact in float32, and so is their product with a power of two.
    return top.astype(np.float32) * np.float32(2.0**-24)


def _mix(z: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * _FIRST
    z = (z ^ (z >> np.uint64(27))) * _SECOND
    return z ^ (z >> np.uint64(31))
