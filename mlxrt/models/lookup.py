"""The look-up of a checkpoint's family."""

from __future__ import annotations

from mlxrt.models.checkpoint import Checkpoint
from mlxrt.models.errors import ModelError
from mlxrt.models.family import Family
from mlxrt.models.registry import FAMILIES


def family_of(checkpoint: Checkpoint) -> Family:
    """Returns the checkpoint's family.

    Raises:
        ModelError: it is not listed.
    """
    text = checkpoint.text_model_type
    name = checkpoint.model_type
    family = FAMILIES.get(f"{name} ({text})") or FAMILIES.get(name)
    if family is None or (text and text not in family.text_types):
        listed = ", ".join(sorted(FAMILIES))
        around = f" around {text!r}" if text else ""
        raise ModelError(f"model_type {name!r}{around} is not served; listed families: {listed}")
    return family
