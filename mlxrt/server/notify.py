"""Tells systemd how the server does, where systemd has started it with Type=notify."""

from __future__ import annotations

import os
import socket

import structlog

from mlxrt.server.lifecycle import ServerState

VARIABLE = "NOTIFY_SOCKET"
_MESSAGES = {ServerState.SERVING: b"READY=1", ServerState.DRAINING: b"STOPPING=1"}
_log = structlog.get_logger("mlxrt.server")


def notify(state: ServerState) -> None:
    """Sends what the state means to a service manager; nothing without one. Never raises.

    Source: sd_notify(3), "Standalone implementations".
    """
    path, message = os.environ.get(VARIABLE), _MESSAGES.get(state)
    if not path or message is None:
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.connect(address)
            manager.sendall(message)
    except OSError as error:
        _log.warning("the service manager does not hear", socket=path, error=str(error))
