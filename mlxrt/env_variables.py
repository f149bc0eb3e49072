"""The environment variables that settings have, and those that nobody knows."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from pydantic import BaseModel

ENV_PREFIX = "MLXRT_"
TOOL_VARIABLES = ("MLXRT_PROTOS", "MLXRT_FUZZ_", "MLXRT_STATEFUL_")
"""Beginnings of variables that the repository's clients and tests read; no settings, and no
misspelt ones."""
_NEAR = 0.8
"""How alike a variable and a setting are when the one is offered for the other, 0 to 1."""


def variables_of(settings: type[BaseModel]) -> frozenset[str]:
    """Every variable that is a setting, or a table of settings as JSON."""
    names = set()
    for name, field in settings.model_fields.items():
        names.add(ENV_PREFIX + name.upper())
        table = field.annotation
        if isinstance(table, type) and issubclass(table, BaseModel):
            names |= {f"{ENV_PREFIX}{name}__{part}".upper() for part in table.model_fields}
    return frozenset(names)


def check_environment(environment: Iterable[str], settings: type[BaseModel]) -> None:
    """Raises ValueError for a variable that pydantic-settings would skip, a misspelt one say."""
    known = variables_of(settings)
    told = []
    for name in sorted(environment):
        upper = name.upper()
        if not upper.startswith(ENV_PREFIX) or upper in known or upper.startswith(TOOL_VARIABLES):
            continue
        near = get_close_matches(upper, known, n=1, cutoff=_NEAR)
        told.append(f"{name} (is {near[0]} meant?)" if near else name)
    if told:
        raise ValueError(f"unknown environment variables: {', '.join(told)}")
