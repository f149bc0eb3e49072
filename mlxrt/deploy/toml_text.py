"""Settings as the text of a TOML file."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from mlxrt.config import Settings

_PAST_ASCII = re.compile(r"[^ -~]")


def settings_text(settings: Settings) -> str:
    """A file that `--config` takes, with what differs from the defaults."""
    return toml_text(settings.model_dump(mode="json", exclude_unset=True))


def toml_text(values: Mapping[str, Any]) -> str:
    """Values and tables of values in TOML; None is left out, for it is the default everywhere."""
    lines = [_line(key, value) for key, value in values.items() if _is_value(value)]
    for key, table in values.items():
        if isinstance(table, Mapping):
            lines.append(f"\n[{key}]\n")
            lines += [_line(name, value) for name, value in table.items() if _is_value(value)]
    return "".join(lines)


def _is_value(value: Any) -> bool:
    return value is not None and not isinstance(value, Mapping)


def _line(key: str, value: Any) -> str:
    # JSON's strings, numbers and lists are TOML's too; what is not plain ASCII is escaped.
    text = json.dumps(value, ensure_ascii=False)
    return f"{key} = {_PAST_ASCII.sub(_escaped, text)}\n"


def _escaped(match: re.Match[str]) -> str:
    return f"\\U{ord(match[0]):08x}"
