"""Which path serves attention: `auto`, `native` or `gather`."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from mlxrt.attention.gather import GatherPath
from mlxrt.attention.path import AttentionPath


class AttentionChoice(enum.Enum):
    """What the user asked for."""

    AUTO = "auto"
    NATIVE = "native"
    GATHER = "gather"


@dataclass(frozen=True, slots=True)
class ChosenPath:
    """The path, and why it is not the native one where `auto` could not have it; else empty."""

    path: AttentionPath
    reason: str


def choose_path(choice: AttentionChoice) -> ChosenPath:
    """Makes the path for `choice`; `auto` takes the native path where its extension can be loaded.

    Raises:
        ImportError: `native` was asked for and its extension can't be loaded.
    """
    if choice is AttentionChoice.GATHER:
        return ChosenPath(GatherPath(), "")
    try:
        from mlxrt.attention.native import NativePath
    except ImportError as error:
        if choice is AttentionChoice.NATIVE:
            raise
        return ChosenPath(GatherPath(), str(error))
    return ChosenPath(NativePath(), "")
