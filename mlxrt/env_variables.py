"""The environment variables that settings have, and those that nobody knows."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any, get_origin

from pydantic import BaseModel

ENV_PREFIX = "MLXRT_"
TOOL_VARIABLES = ("MLXRT_PROTOS", "MLXRT_FUZZ_", "MLXRT_STATEFUL_", "MLXRT_METAL_WHEEL")
"""Beginnings of variables that the repository's clients and tests read; no settings, and no
misspelt ones."""
_NEAR = 0.8
"""How alike a variable and a setting are when the one is offered for the other, 0 to 1."""


def variables_of(settings: type[BaseModel]) -> frozenset[str]:
    """Every variable that is a setting, or a table of settings as JSON."""
    return frozenset(_types_of(settings))


def _types_of(settings: type[BaseModel], prefix: str = ENV_PREFIX) -> dict[str, Any]:
    """The type of each variable's value."""
    types: dict[str, Any] = {}
    for name, field in settings.model_fields.items():
        variable = prefix + name.upper()
        kind: Any = field.annotation
        types[variable] = kind
        if _is_table(kind):
            types |= _types_of(kind, f"{variable}__")
    return types


def _is_table(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def check_environment(environment: Mapping[str, str], settings: type[BaseModel]) -> None:
    """Raises ValueError for a variable that pydantic-settings would skip, a misspelt one say, and
    for one that must be JSON and is none, which it would not name."""
    types = _types_of(settings)
    _check_known(environment, frozenset(types))
    for name, text in environment.items():
        kind = types.get(name.upper())
        if _is_table(kind) or get_origin(kind) is tuple:
            try:
                json.loads(text)
            except (ValueError, RecursionError) as error:
                field = name.upper().removeprefix(ENV_PREFIX).replace("__", ".").lower()
                raise ValueError(f"{name}: {field} is JSON in the environment: {error}") from error


def _check_known(environment: Iterable[str], known: frozenset[str]) -> None:
    told = []
    for name in sorted(environment):
        upper = name.upper()
        if not upper.startswith(ENV_PREFIX) or upper in known or upper.startswith(TOOL_VARIABLES):
            continue
        near = get_close_matches(upper, known, n=1, cutoff=_NEAR)
        told.append(f"{name} (is {near[0]} meant?)" if near else name)
    if told:
        raise ValueError(f"unknown environment variables: {', '.join(told)}")
