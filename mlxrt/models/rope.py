"""Rotary embeddings: which types run with an array of positions, and what mlx-lm drops of their
parameters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# Types whose code in mlx-lm hands the offset on to mx.fast.rope untouched; `dynamic` does
# arithmetic on it.
_YARN = ("yarn", "deepseek_yarn", "telechat3-yarn")
_SERVED = frozenset({"default", "linear", "llama3", "longrope", "su", "mrope", *_YARN})


@dataclass(frozen=True, slots=True)
class RopeFindings:
    """What stands against a config's rope: `dropped` by mlx-lm, `unservable` whatever the user
    accepts.
    """

    dropped: list[str]
    unservable: list[str]


def rope_findings(config: Mapping[str, Any], also_served: Sequence[str] = ()) -> RopeFindings:
    """Looks at rope_scaling, or rope_parameters where that is absent; a config may have one for
    each type of layer.

    Args:
        also_served: types that the family's module serves beside the common ones.
    """
    name = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
    scaling = config.get(name) or {}
    layered = {f"{name}.{key}": value for key, value in scaling.items() if isinstance(value, dict)}
    found = RopeFindings([], [])
    for place, each in (layered or {name: scaling}).items():
        one = _findings_of(place, each, also_served)
        found.dropped.extend(one.dropped)
        found.unservable.extend(one.unservable)
    return found


def _findings_of(name: str, scaling: Mapping[str, Any], also_served: Sequence[str]) -> RopeFindings:
    # mlx-lm reads `type` first; newer checkpoints say `rope_type`.
    kind = scaling.get("type") or scaling.get("rope_type") or "default"
    if kind in also_served:
        return RopeFindings([], [])
    if kind not in _SERVED:
        return RopeFindings([], [f"{name}: rope type {kind}"])
    dropped = []
    if scaling.get("partial_rotary_factor", 1.0) != 1.0:
        dropped.append(f"{name}.partial_rotary_factor: {scaling['partial_rotary_factor']}")
    if kind in ("longrope", "su"):
        dropped.append(f"{name}.short_factor (mlx-lm always uses long_factor)")
    if kind in _YARN:
        if "original_max_position_embeddings" not in scaling:
            dropped.append(f"{name}: yarn without original_max_position_embeddings")
        if scaling.get("attention_factor") is not None:
            dropped.append(f"{name}.attention_factor: {scaling['attention_factor']}")
        if scaling.get("truncate") is False:
            dropped.append(f"{name}.truncate: false")
    return RopeFindings(dropped, [])
