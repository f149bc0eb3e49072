"""Binding the server to its address, refusing one that somebody else serves."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import structlog
from prometheus_client.registry import Collector

from mlxrt.addresses import OFF
from mlxrt.config import ConfigError, Settings
from mlxrt.telemetry.endpoint import MetricsEndpoint

_log = structlog.get_logger("mlxrt.server")


def bind(
    server: grpc.aio.Server, address: str, credentials: grpc.ServerCredentials | None = None
) -> str:
    """Binds `address` (as Settings.address) and answers it with the port that was chosen.

    A unix socket is made for its owner alone; a dead one in its place is removed first.

    Args:
        credentials: of TLS; None for none.

    Raises:
        ConfigError: the address is taken or can't be bound.
    """
    path = address.removeprefix("unix:")
    if path != address:
        _clear_dead_socket(path)
        with _private_files():
            _add_port(server, address, None)
        return address
    port = _add_port(server, address, credentials)
    return f"{address.rpartition(':')[0]}:{port}"


async def listen_for_scrapes(settings: Settings, collector: Collector) -> MetricsEndpoint | None:
    """Serves the metrics at `settings.metrics_address`; None where that is off, or where the
    default's port is taken.

    Raises:
        ConfigError: an address that was asked for is taken or can't be bound.
    """
    address = settings.metrics_address
    if address == OFF:
        return None
    try:
        return await asyncio.to_thread(MetricsEndpoint, address, collector)
    except OSError as error:
        if "metrics_address" in settings.model_fields_set:
            raise ConfigError(f"metrics_address: can't listen on {address}: {error}") from error
        _log.warning(
            "no metrics: their port is taken; set metrics_address to another, or to off",
            metrics_address=address, error=str(error),
        )  # fmt: skip
        return None


def _add_port(
    server: grpc.aio.Server, address: str, credentials: grpc.ServerCredentials | None
) -> int:
    port: int
    try:
        if credentials is None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise ConfigError(f"can't listen on {address}: {error}") from error
    if port == 0:
        raise ConfigError(f"can't listen on {address}")
    return port


def _clear_dead_socket(path: str) -> None:
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigError(f"{path} exists and is no socket")
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except OSError as error:
            raise ConfigError(f"can't tell whether {path} is in use: {error}") from error
    raise ConfigError(f"another server listens on {path}")


@contextmanager
def _private_files() -> Iterator[None]:
    """Files made within belong to this user alone. The umask is the process's: call before other
    threads make files."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)
