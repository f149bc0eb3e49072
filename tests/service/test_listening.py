"""Where a server listens, and that it never takes another's place."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from mlxrt_client.v1 import model_pb2

from mlxrt.config import ConfigError, load_settings
from mlxrt.server import Server
from mlxrt.testing import FakeEngine


def start_error(address: str) -> str:
    """The message of the ConfigError that a start on `address` ends with."""

    async def attempt() -> None:
        server = Server(load_settings(None, fake=True, address=address), FakeEngine())
        await server.start()

    with pytest.raises(ConfigError) as raised:
        asyncio.run(attempt())
    return str(raised.value)


def test_a_unix_socket_is_its_owners_alone(server: Any) -> None:
    path = server.server.address.removeprefix("unix:")
    assert stat.S_IMODE(os.stat(path).st_mode) & 0o077 == 0


def test_loopback_with_a_port_of_the_systems_choice(launch: Callable[..., Any]) -> None:
    server = launch(address="127.0.0.1:0")
    port = int(server.server.address.rpartition(":")[2])
    assert port > 0
    info = server.call("GetServerInfo", model_pb2.GetServerInfoRequest())
    assert info.instance_id == server.server.instance_id


def test_an_address_in_use_is_refused(launch: Callable[..., Any]) -> None:
    unix, tcp = launch(), launch(address="127.0.0.1:0")
    assert "another server" in start_error(unix.server.address)
    assert "can't listen" in start_error(tcp.server.address)
    # The first server is still there.
    for server in (unix, tcp):
        with grpc.insecure_channel(server.server.address) as channel:
            run = channel.unary_unary("/mlxrt.v1.ModelService/GetServerInfo")
            assert run(b"", timeout=60, wait_for_ready=True)


def test_a_dead_socket_is_replaced_and_a_file_is_not(
    launch: Callable[..., Any], socket_folder: Path
) -> None:
    path = socket_folder / "dead.sock"
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(path))
    server = launch(address=f"unix:{path}")
    assert server.call("GetServerInfo", model_pb2.GetServerInfoRequest()).version
    file = socket_folder / "file"
    file.write_text("precious")
    assert "no socket" in start_error(f"unix:{file}")
    assert file.read_text() == "precious"
    assert "can't listen" in start_error(f"unix:{socket_folder / 'no' / 'folder.sock'}")


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0:50061", "10.0.0.1:50061", "[::]:50061", "example.org:50061", "127.0.0.1",
        "127.0.0.1:65536", "127.0.0.1:-1", "127.0.0.999:1", "unix:", "unix:" + "x" * 104,
        "localhost.evil:1", ":50061", "",
    ],
)  # fmt: skip
def test_anything_but_loopback_and_unix_is_refused(address: str) -> None:
    with pytest.raises(ConfigError):
        load_settings(None, address=address)


def test_the_refusal_says_why() -> None:
    with pytest.raises(ConfigError, match="TLS"):
        load_settings(None, address="0.0.0.0:50061")
    for address in ("localhost:1", "127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "unix:/tmp/x"):
        load_settings(None, address=address)
