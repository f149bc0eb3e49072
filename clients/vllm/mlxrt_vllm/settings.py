"""Which mlxrt server to use and how, from environment variables. Imports no vLLM."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import grpc

PREFIX = "VLLM_MLXRT_"


@dataclass(frozen=True)
class Settings:
    """How the server is reached.

    Attributes:
        address: `unix:/path/of/socket` or `host:port`.
        token_file: its first line is sent with every call; read anew for each connection.
        ca_file: authorities of the server's certificate, PEM; with it the connection uses TLS.
        certificate_file, key_file: this client's certificate and key, PEM; both or neither.
        patience_s: seconds for which a server that can't be reached is tried again.
        lease_ttl_ms: how long the server keeps the session's blocks once this process is gone; 0
            for the server's default.
    """

    address: str
    token_file: Path | None = None
    ca_file: Path | None = None
    certificate_file: Path | None = None
    key_file: Path | None = None
    patience_s: float = 30.0
    lease_ttl_ms: int = 0

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Settings:
        """Reads `VLLM_MLXRT_ADDRESS` and, for each other attribute, the variable named like it.

        Raises:
            ValueError: a variable is missing or can't be used; the message names it.
        """
        refuse_unknown(environment)
        address = environment.get(PREFIX + "ADDRESS", "")
        if not address:
            raise ValueError(f"{PREFIX}ADDRESS is not set: give the mlxrt server's address")
        files = {
            name: _file(environment, name)
            for name in ("token_file", "ca_file", "certificate_file", "key_file")
        }
        if (files["certificate_file"] is None) != (files["key_file"] is None):
            raise ValueError(f"{PREFIX}CERTIFICATE_FILE and {PREFIX}KEY_FILE go together")
        if files["certificate_file"] is not None and files["ca_file"] is None:
            raise ValueError(f"{PREFIX}CERTIFICATE_FILE needs {PREFIX}CA_FILE")
        return cls(
            address,
            **files,
            patience_s=_number(environment, "patience_s", cls.patience_s),
            lease_ttl_ms=int(_number(environment, "lease_ttl_ms", cls.lease_ttl_ms)),
        )

    def credentials(self) -> grpc.ChannelCredentials | None:
        """For TLS; None where no authority is given."""
        if self.ca_file is None:
            return None
        if self.certificate_file is None or self.key_file is None:
            return grpc.ssl_channel_credentials(self.ca_file.read_bytes())
        key, certificate = self.key_file.read_bytes(), self.certificate_file.read_bytes()
        return grpc.ssl_channel_credentials(self.ca_file.read_bytes(), key, certificate)

    def token(self) -> str | None:
        """The token to send; None where no file is given."""
        if self.token_file is None:
            return None
        lines = self.token_file.read_text(encoding="utf-8").split()
        if not lines:
            raise ValueError(f"{PREFIX}TOKEN_FILE: {self.token_file} holds no token")
        return lines[0]


VARIABLES = frozenset(PREFIX + field.name.upper() for field in fields(Settings))
"""Every variable that means something here."""


def refuse_unknown(environment: Mapping[str, str]) -> None:
    """Raises ValueError for a variable of this package's prefix that means nothing."""
    unknown = sorted(n for n in environment if n.startswith(PREFIX) and n not in VARIABLES)
    if unknown:
        raise ValueError(f"unknown environment variables: {', '.join(unknown)}")


def _file(environment: Mapping[str, str], name: str) -> Path | None:
    variable = PREFIX + name.upper()
    given = environment.get(variable, "")
    if not given:
        return None
    path = Path(given)
    if not path.is_file():
        raise ValueError(f"{variable}: there is no file {given}")
    return path


def _number(environment: Mapping[str, str], name: str, default: float) -> float:
    variable = PREFIX + name.upper()
    given = environment.get(variable, "")
    try:
        value = float(given) if given else default
    except ValueError:
        raise ValueError(f"{variable}: {given!r} is not a number") from None
    if not value >= 0:
        raise ValueError(f"{variable}: must be 0 or more, is {given}")
    return value


def platform_plugin() -> str | None:
    """vLLM's entry point: the platform's class where an address is set, else None.

    So a vLLM with this package installed runs as ever until `VLLM_MLXRT_ADDRESS` says otherwise.
    """
    if not os.environ.get(PREFIX + "ADDRESS"):
        return None
    # The adapter speaks the protocol of vLLM's first model runner, on every machine: the second
    # one's is chosen where Triton is installed. An explicit 1 is refused by the platform.
    os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0")
    return "mlxrt_vllm.platform.MlxrtPlatform"
