"""What the registry says of a family."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mlxrt.models.checkpoint import Checkpoint
from mlxrt.models.errors import ModelError

Config = Mapping[str, Any]
Windows = Callable[[Config, int], Sequence[int]]


def full_attention(config: Config, layer_count: int) -> Sequence[int]:
    """No layer has a window."""
    return [0] * layer_count


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One of mlx-lm's families.

    Attributes:
        model_type: its name in config.json.
        attention: what its layers are, in words, for the table of families.
        module: mlx-lm's module, where it is not named for the model_type.
        text_module: the module that reads the config, where the model is a wrapper around a text
            model; images are not served.
        text_types: the text models that the wrapper may hold; empty for a plain model.
        inner: the attribute of the model that is the model without its head, with dots on the way.
        windows: what the config gives each of so many layers, as positions that a row sees, itself
            included; 0 for all.
        activations: values of the config's activation field that mlx-lm's module computes.
        rope_types: rope types, beyond those that every module serves, that this one turns into
            fixed frequencies.
        known_otherwise: fields that change numbers, are not read by the module, and say what other
            fields say.
        required: fields for which mlx-lm would put a default of its own.
        dropped: fields that change numbers and that mlx-lm ignores although its module knows their
            names, or that it takes for granted; each with the values at which it changes none.
        dropped_by_rule: what else mlx-lm ignores, found by looking at several fields.
    """

    model_type: str
    attention: str = "full"
    module: str = ""
    text_module: str = ""
    text_types: tuple[str, ...] = ()
    inner: str = "model"
    windows: Windows = full_attention
    activations: tuple[Any, ...] = ("silu", "swish", None)
    rope_types: tuple[str, ...] = ()
    known_otherwise: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    dropped: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    dropped_by_rule: Callable[[Checkpoint], list[str]] = lambda checkpoint: []

    @property
    def module_name(self) -> str:
        """The name of mlx-lm's module, without its package."""
        return self.module or self.model_type

    def check_windows(self, config: Config, found: Sequence[int]) -> None:
        """Holds the windows that the model applies, by layer, against the config's.

        Raises:
            ModelError: they differ, or the config lacks what says them.
        """
        try:
            wanted = list(self.windows(config, len(found)))
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(
                f"config.json does not say which layers have a window: {error!r}"
            ) from error
        if wanted != list(found):
            raise ModelError(
                f"windows by layer are {wanted} in config.json, mlx-lm applies {list(found)}"
            )
