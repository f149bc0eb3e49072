"""Which layers of a family have a sliding window, as config.json says it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mlxrt.models.family import Config


def by_layer_types(config: Config, layer_count: int) -> Sequence[int]:
    """As `layer_types` lists them; all full where it is absent."""
    types = config.get("layer_types") or ["full_attention"] * layer_count
    return [_window_of(config) if kind == "sliding_attention" else 0 for kind in types]


def every_second_full(config: Config, layer_count: int) -> Sequence[int]:
    """As `layer_types` lists them; sliding and full in turn where it is absent."""
    return by_layer_types(_with_types(config, layer_count, 2), layer_count)


def every_fourth_full(config: Config, layer_count: int) -> Sequence[int]:
    """As `layer_types` lists them; each fourth layer full where it is absent."""
    return by_layer_types(_with_types(config, layer_count, 4), layer_count)


def by_period(config: Config, layer_count: int) -> Sequence[int]:
    """The last of each `sliding_window_pattern` layers is full.

    A config may say it by `layer_types` alone, or by both.
    """
    types = config.get("layer_types")
    period = config.get("sliding_window_pattern")
    if period is None:
        if types is None:
            raise KeyError("sliding_window_pattern")
        return by_layer_types(config, layer_count)
    windows = [
        0 if (index + 1) % int(period) == 0 else _window_of(config) for index in range(layer_count)
    ]
    if types is not None and list(by_layer_types(config, layer_count)) != windows:
        raise ValueError("layer_types contradicts sliding_window_pattern")
    return windows


def by_sixes(config: Config, layer_count: int) -> Sequence[int]:
    """As `by_period`; without any word on it, the last of each six layers is full."""
    if config.get("sliding_window_pattern") is None and not config.get("layer_types"):
        config = {**config, "sliding_window_pattern": 6}
    return by_period(config, layer_count)


def by_hybrid_pattern(config: Config, layer_count: int) -> Sequence[int]:
    """`hybrid_layer_pattern` has a 1 for each layer with a window, `sliding_window_size`."""
    width = int(config["sliding_window_size"])
    return [width if windowed else 0 for windowed in config["hybrid_layer_pattern"]]


def by_letters(config: Config, layer_count: int) -> Sequence[int]:
    """`sliding_window_pattern` has an L for each local layer and a G for each global one, and is
    repeated; all layers are full without it.
    """
    pattern = config.get("sliding_window_pattern")
    if not pattern:
        return by_layer_types(config, layer_count)
    letters = [pattern[index % len(pattern)] for index in range(layer_count)]
    windows = [_window_of(config) if letter == "L" else 0 for letter in letters]
    if config.get("layer_types") and list(by_layer_types(config, layer_count)) != windows:
        raise ValueError("layer_types contradicts sliding_window_pattern")
    return windows


def _window_of(config: Config) -> int:
    return int(config["sliding_window"])


def _with_types(config: Config, layer_count: int, period: int) -> dict[str, Any]:
    types = config.get("layer_types") or [
        "sliding_attention" if (index + 1) % period else "full_attention"
        for index in range(layer_count)
    ]
    return {**config, "layer_types": types}
