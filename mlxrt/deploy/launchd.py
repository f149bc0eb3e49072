"""A launchd property list, for a Mac."""

from __future__ import annotations

import plistlib
import re
from pathlib import Path

from mlxrt.config import ConfigError
from mlxrt.deploy.service import Service, check_absolute

THROTTLE_S = 30
"""Least time between two starts: launchd can't tell a configuration that will never do."""
OPEN_FILES = 65536
_LABEL = re.compile(r"[A-Za-z0-9._-]{1,128}")
_HEAD_END = b'<plist version="1.0">'
_ABOUT = """<!--
  mlxrt as a launchd agent of one user. Written by `mlxrt deploy print launchd`.
    mkdir -p {folder}
    mlxrt deploy print launchd > ~/Library/LaunchAgents/{label}.plist
    launchctl bootstrap gui/$UID ~/Library/LaunchAgents/{label}.plist
  launchctl bootout gui/$UID/{label} drains it, for ExitTimeOut seconds at most.
  launchd appends to the two logs and never rotates them; `: > FILE` empties one.
-->
"""


def launchd(service: Service, label: str, log_folder: Path) -> str:
    """The property list of an agent.

    Args:
        label: its name, in reverse-DNS form.
        log_folder: where its logs go; launchd does not make it.

    Raises:
        ConfigError: a setting names a relative path.
    """
    if not _LABEL.fullmatch(label):
        raise ConfigError(f"--label: {label!r} has other characters than A-Z, a-z, 0-9, . - _")
    check_absolute(service)
    content = {
        "Label": label,
        "ProgramArguments": list(service.command),
        "EnvironmentVariables": dict(service.environment),
        "RunAtLoad": True,
        "KeepAlive": {"SuccessfulExit": False},
        "ThrottleInterval": THROTTLE_S,
        "ExitTimeOut": service.stop_seconds,
        "ProcessType": "Interactive",  # anything less is throttled
        "SoftResourceLimits": {"NumberOfFiles": OPEN_FILES},
        "HardResourceLimits": {"NumberOfFiles": OPEN_FILES},
        "StandardOutPath": str(log_folder / f"{label}.out.log"),
        "StandardErrorPath": str(log_folder / f"{label}.err.log"),
    }
    head, mark, rest = plistlib.dumps(content, sort_keys=False).partition(_HEAD_END)
    about = _ABOUT.format(folder=_in_comment(log_folder), label=_in_comment(label))
    return (head + about.encode() + mark + rest).decode()


def _in_comment(text: object) -> str:
    """The text as an XML comment may hold it: without two hyphens side by side."""
    return str(text).replace("--", "- -")
