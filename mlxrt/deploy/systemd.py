"""A systemd unit, for Linux."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

from mlxrt.config import ConfigError
from mlxrt.deploy.service import NO_USE_CODES, Service, check_absolute

_TEMPLATE = """\
# mlxrt as a systemd service. Written by `mlxrt deploy print systemd`.
#   useradd --system {user}
#   mlxrt deploy print systemd > /etc/systemd/system/mlxrt.service
#   systemctl daemon-reload && systemctl enable --now mlxrt
{reads}\
[Unit]
Description=mlxrt: execution of language models on MLX
After=network-online.target
Wants=network-online.target
StartLimitIntervalSec=600
StartLimitBurst=5

[Service]
# Started once health says SERVING, however long the model takes to load.
Type=notify
NotifyAccess=main
TimeoutStartSec=infinity
ExecStart={command}
{environment}\
# SIGTERM drains: drain_seconds, then steps under way until they count as stalled.
KillSignal=SIGTERM
KillMode=mixed
TimeoutStopSec={stop_seconds}
Restart=on-failure
RestartSec=5
# Another start would end the same way: configuration, model, ABI, memory.
RestartPreventExitStatus={no_use}
LimitNOFILE=65536

User={user}
StateDirectory=mlxrt
Environment=HF_HOME=%S/mlxrt/huggingface
{folders}\
UMask=0077
NoNewPrivileges=yes
CapabilityBoundingSet=
ProtectSystem=strict
ProtectHome=read-only
PrivateTmp={private_tmp}
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
SystemCallArchitectures=native
# Not here, for a GPU's sake: PrivateDevices, and MemoryDenyWriteExecute.

[Install]
WantedBy=multi-user.target
"""
_USER = re.compile(r"[a-z_][a-z0-9_-]{0,31}")
RUN = PurePosixPath("/run")


def systemd(service: Service, user: str) -> str:
    """The unit.

    Args:
        user: whom the server runs as; a unix socket is that user's alone.

    Raises:
        ConfigError: a setting names a relative path, or a unix socket in a folder that a service
            can't have.
    """
    if not _USER.fullmatch(user):
        raise ConfigError(f"--user: {user!r} is no name of a user")
    check_absolute(service)
    folders, private_tmp = _folders(service.settings.address)
    reads = [f"# {user} must be able to read {path} ({name})\n" for name, path in service.files()]
    environment = [
        f"Environment={quoted(f'{name}={value}')}\n" for name, value in service.environment.items()
    ]
    return _TEMPLATE.format(
        user=user,
        reads="".join(reads),
        command=command_line(service.command),
        environment="".join(environment),
        stop_seconds=service.stop_seconds,
        no_use=" ".join(map(str, NO_USE_CODES)),
        folders=folders,
        private_tmp="yes" if private_tmp else "no",
    )


def _folders(address: str) -> tuple[str, bool]:
    """What makes the socket's folder writable, and whether /tmp may be the service's own."""
    if not address.startswith("unix:"):
        return "", True
    folder = PurePosixPath(address.removeprefix("unix:")).parent
    if folder.parent == RUN:
        return f"RuntimeDirectory={quoted(folder.name)}\n", True
    if folder == RUN or folder == PurePosixPath("/"):
        raise ConfigError(
            f"address: a service can't make a socket in {folder}; use unix:/run/mlxrt/mlxrt.sock"
        )
    return f"ReadWritePaths={quoted(str(folder))}\n", not folder.is_relative_to("/tmp")


def command_line(words: Sequence[str]) -> str:
    """The words as ExecStart takes them."""
    return " ".join(quoted(word).replace("$", "$$") for word in words)


def quoted(word: str) -> str:
    """A word as systemd reads it back, quoted where that is needed."""
    word = word.replace("%", "%%")
    if word and all(each.isalnum() or each in "-_./:=,@+%[]" for each in word):
        return word
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
