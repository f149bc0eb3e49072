"""Refuses a checkpoint whose config asks for numbers that mlx-lm would not compute."""

from __future__ import annotations

from mlxrt.models.checkpoint import Checkpoint
from mlxrt.models.errors import ModelError
from mlxrt.models.families import Family

ACCEPT_FLAG = "--accept-mlx-lm-semantics"
"""The command line's name for `accept_dropped`."""


def check_semantics(checkpoint: Checkpoint, family: Family, *, accept_dropped: bool) -> list[str]:
    """Compares the config with what mlx-lm computes of it.

    Args:
        accept_dropped: compute as mlx-lm does even where it ignores a field.

    Returns:
        The fields that mlx-lm ignores and the user accepted.

    Raises:
        ModelError: a field is ignored and that was not accepted, or can't be served at all.
    """
    unservable = family.unservable(checkpoint.config)
    if unservable:
        raise ModelError(f"{family.model_type} with {'; '.join(unservable)} is not served")
    dropped = [
        f"{name}: {checkpoint.config[name]}"
        for name, neutral in family.dropped.items()
        if name in checkpoint.config and checkpoint.config[name] not in neutral
    ]
    dropped += family.dropped_by_rule(checkpoint)
    if dropped and not accept_dropped:
        raise ModelError(
            f"mlx-lm ignores what this {family.model_type} checkpoint's config says: "
            f"{'; '.join(dropped)}. {ACCEPT_FLAG} computes as mlx-lm does"
        )
    return dropped
