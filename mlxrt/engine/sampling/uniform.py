"""The random number of a draw: a function of the sequence's seed and the new token's position."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

# Arrays without dimensions: NumPy takes longer over its scalars.
_GAMMA = np.array(0x9E3779B97F4A7C15, np.uint64)
_FIRST = np.array(0xBF58476D1CE4E5B9, np.uint64)
_SECOND = np.array(0x94D049BB133111EB, np.uint64)
_27, _30, _31, _40 = (np.array(bits, np.uint64) for bits in (27, 30, 31, 40))
_UNIT = np.array(2.0**-24, np.float32)


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
    return uniform_from(origin(seed), position)


def origin(seed: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """What `uniform` makes of the seed alone, to be kept for all positions: [N] uint64."""
    mixed = _multiplied(np.atleast_1d(seed))
    return (mixed ^ (mixed >> _31)) + _GAMMA


def uniform_from(
    origins: npt.NDArray[np.uint64], position: npt.NDArray[np.int64]
) -> npt.NDArray[np.float32]:
    """As `uniform`, of seeds of these origins."""
    state = origins + np.atleast_1d(position).astype(np.uint64) * _GAMMA
    # The last step of SplitMix64 changes none of the upper 31 bits, of which these are 24.
    top = _multiplied(state) >> _40
    # 24 bits are exact in float32, and so is their product with a power of two.
    return top.astype(np.float32) * _UNIT


def _multiplied(z: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """SplitMix64's mix, up to its last step."""
    z = (z ^ (z >> _30)) * _FIRST
    return (z ^ (z >> _27)) * _SECOND
