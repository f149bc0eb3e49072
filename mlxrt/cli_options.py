"""Options that several commands have, and the settings that they amount to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from mlxrt.config import ConfigError, Settings, load_settings

Model = Annotated[
    str | None,
    typer.Option(help='A folder, a Hugging Face hub name, or "bundled" (the default).'),
]
Attention = Annotated[str | None, typer.Option(help="auto, native or gather.")]
Dtype = Annotated[str | None, typer.Option(help="auto, float32, float16 or bfloat16.")]
Blas = Annotated[str | None, typer.Option(help="auto, openblas or reference (Linux CPU).")]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="A TOML file of settings.")]
AcceptSemantics = Annotated[
    bool,
    typer.Option(
        "--accept-mlx-lm-semantics",
        help="Load a checkpoint although mlx-lm ignores a config field that changes numbers.",
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Any other setting, as limits.max_step_rows=512. Repeatable.",
    ),
]


def settings_of(config: Path | None, set_: list[str] | None, **explicit: Any) -> Settings:
    """Settings from the sources; options that were not given don't count."""
    return load_settings(config, **explicit_values(set_, **explicit))


def explicit_values(set_: list[str] | None, **explicit: Any) -> dict[str, Any]:
    """What options and `--set` say, as `load_settings` takes it.

    Raises:
        ConfigError: an entry of `--set` has another form than KEY=VALUE.
    """
    values: dict[str, Any] = {key: value for key, value in explicit.items() if value is not None}
    for entry in set_ or ():
        key, separator, text = entry.partition("=")
        if not separator:
            raise ConfigError(f"--set {entry}: KEY=VALUE is needed")
        *parents, name = key.split(".")
        place = values
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                raise ConfigError(f"--set {entry}: {parent} has a value of its own and no parts")
        place[name] = _parsed(text)
    return values


def _parsed(text: str) -> Any:
    """The value of a `--set` option: JSON where it is JSON, else the text itself."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
