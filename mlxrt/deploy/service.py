"""A server as somebody else starts it: its command line, its environment, how long it takes to
end."""

from __future__ import annotations

import math
import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlxrt.addresses import OFF
from mlxrt.config import ConfigError, Settings
from mlxrt.env_variables import variables_of
from mlxrt.server.app import CLOSE_S, STOP_GRACE_S
from mlxrt.server.stall import LOOKS_PER_LIMIT
from mlxrt.telemetry.tracing import CLOSE_S as TRACING_CLOSE_S

STOP_MARGIN_S = 5
"""Time beyond the longest end that the server knows of, for the process itself."""
NO_USE_CODES = (2, 3, 4, 5)
"""Exit codes after which another start ends the same way: configuration, model, ABI, memory."""


@dataclass(frozen=True, slots=True)
class Service:
    """What a template is filled from.

    Attributes:
        settings: those that the server will have.
        command: program and arguments.
        environment: variables that are settings, as they are now.
    """

    settings: Settings
    command: Sequence[str]
    environment: Mapping[str, str]

    @property
    def stop_seconds(self) -> int:
        """Whole seconds in which the server has ended after SIGTERM, whatever happens: the drain,
        then steps that were accepted, until they end or count as stalled, then closing."""
        stall_s = self.settings.stall_seconds * (1 + 1 / LOOKS_PER_LIMIT)
        closing_s = CLOSE_S + STOP_GRACE_S + TRACING_CLOSE_S + STOP_MARGIN_S
        return math.ceil(self.settings.drain_seconds + stall_s + closing_s)

    def files(self) -> Iterator[tuple[str, Path]]:
        """The files that the settings name, each with its setting."""
        tls = self.settings.tls
        named = {
            "tls.certificate_file": tls.certificate_file,
            "tls.key_file": tls.key_file,
            "tls.client_ca_file": tls.client_ca_file,
            "token_file": self.settings.token_file,
        }
        yield from ((setting, path) for setting, path in named.items() if path is not None)


def check_absolute(service: Service) -> None:
    """Raises ConfigError for a path that depends on the folder that a server is started in."""
    paths = [*service.files()]
    if service.settings.address.startswith("unix:"):
        paths.append(("address", Path(service.settings.address.removeprefix("unix:"))))
    for setting, path in paths:
        if not path.is_absolute():
            raise ConfigError(
                f"{setting}: {str(path)!r} is relative, and a service is started in another "
                "folder: give an absolute path"
            )


def default_program() -> list[str]:
    """The `mlxrt` beside this Python, or this Python with the module."""
    script = Path(sys.executable).with_name("mlxrt")
    return [str(script)] if script.is_file() else [sys.executable, "-P", "-m", "mlxrt"]


def program_of(text: str | None) -> list[str]:
    """A program and its first arguments, as a shell would split them.

    Raises:
        ConfigError: there is none, or its path is relative.
    """
    if text is None:
        return default_program()
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ConfigError(f"--program: {error}") from error
    if not words or not os.path.isabs(words[0]):
        raise ConfigError(f"--program: {text!r} is no absolute path")
    return words


def setting_variables() -> dict[str, str]:
    """The environment variables that are settings, as they are now."""
    known = variables_of(Settings)
    return {name: value for name, value in os.environ.items() if name.upper() in known}


def port_of(address: str) -> int | None:
    """The port of a HOST:PORT; None for OFF and for a unix socket."""
    if address == OFF or address.startswith("unix:"):
        return None
    return int(address.rpartition(":")[2])
