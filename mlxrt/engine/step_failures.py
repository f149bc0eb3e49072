"""What a step fails with, on the engine's side."""

from __future__ import annotations

from mlxrt.errors import MlxrtError, Reason


def execution_failed(activity: str, error: Exception) -> MlxrtError:
    """EXECUTION_FAILED: `error` came of `activity`."""
    failure = MlxrtError(Reason.EXECUTION_FAILED, f"{activity}: {type(error).__name__}: {error}")
    failure.__cause__ = error
    return failure


def predecessor_failed() -> MlxrtError:
    """PREDECESSOR_FAILED, for a step that builds on one that did not run."""
    return MlxrtError(Reason.PREDECESSOR_FAILED, "a step that this one follows failed")
