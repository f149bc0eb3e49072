"""The seed of a sequence that names none."""

from __future__ import annotations

_MASK = (1 << 64) - 1


def derived_seed(session_seed: int, sequence_id: int) -> int:
    """A seed that differs from sequence to sequence and from session to session; 64 bits.

    Source: the finaliser of SplitMix64, the `mix` of sampling.proto.
    """
    return _mix((_mix(session_seed & _MASK) + sequence_id) & _MASK)


def _mix(value: int) -> int:
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)
