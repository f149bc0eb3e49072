"""Refusals of step numbers."""

from __future__ import annotations

from mlxrt.errors import MlxrtError, Reason


def numbered(reason: Reason, expected: int, message: str) -> MlxrtError:
    """A refusal that says which number is due."""
    return MlxrtError(
        reason,
        f"{message}; the next one is {expected}",
        metadata={"expected_step_number": str(expected)},
    )
