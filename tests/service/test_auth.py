"""Bearer tokens over the wire: none, wrong, right, two at once, rotation; never in a log."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2
from mlxrt_client import Client, RetryPolicy, aio
from mlxrt_client.errors import UnauthenticatedError
from mlxrt_client.v1 import model_pb2, session_pb2

from mlxrt.config import ConfigError
from mlxrt.errors import Reason
from mlxrt.server.auth import LOOK_INTERVAL_S, TokenFile

OLD, NEW, WRONG = "old-token-of-0123456789", "new-token-of-0123456789", "bad-token-of-0123456789"
Launch = Callable[..., Any]


def write_tokens(path: Path, *tokens: str) -> Path:
    """Replaces the file as an operator does: at once, by a rename."""
    fresh = path.with_suffix(".new")
    fresh.write_text("".join(f"{token}\n" for token in tokens))
    os.replace(fresh, path)
    return path


def metadata(token: str | None) -> tuple[tuple[str, str], ...]:
    return () if token is None else (("authorization", f"Bearer {token}"),)


def state_of(server: Any, token: str | None) -> int:
    """GetServerInfo's state, asked for with the token."""
    request = model_pb2.GetServerInfoRequest()
    return server.call("GetServerInfo", request, metadata=metadata(token)).state


def refusal(server: Any, token: str | None, rpc: str = "GetServerInfo") -> Any:
    with pytest.raises(grpc.RpcError) as raised:
        server.call(rpc, b"", metadata=metadata(token))
    return server.refusal_of(raised.value)


@pytest.mark.parametrize("address", ["unix", "127.0.0.1:0"])
@pytest.mark.parametrize("token", [None, "", WRONG, OLD[:-1], OLD + "x", OLD.upper()])
def test_without_a_token_of_the_file_nothing_is_answered(
    launch: Launch, tmp_path: Path, address: str, token: str | None
) -> None:
    settings = {} if address == "unix" else {"address": address}
    server = launch(token_file=write_tokens(tmp_path / "tokens", OLD), **settings)
    for rpc in ("GetServerInfo", "OpenSession", "Step"):
        found = refusal(server, token, rpc)
        assert found.reason is Reason.UNAUTHENTICATED_CALLER
        assert found.code is grpc.StatusCode.UNAUTHENTICATED and found.retry_ms is None
    assert state_of(server, OLD) == model_pb2.SERVER_STATE_SERVING


def test_streams_health_and_reflection_ask_for_it_too(launch: Launch, tmp_path: Path) -> None:
    server = launch(token_file=write_tokens(tmp_path / "tokens", OLD))
    for path in (
        "/mlxrt.v1.ExecutionService/Execute", "/grpc.health.v1.Health/Watch",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        "/mlxrt.v1.ModelService/GetTokenizer",
    ):  # fmt: skip
        run = server.channel.stream_stream(path)
        with pytest.raises(grpc.RpcError) as raised:
            next(run(iter([b""]), timeout=60))
        assert server.refusal_of(raised.value).reason is Reason.UNAUTHENTICATED_CALLER, path
    check = server.channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        response_deserializer=health_pb2.HealthCheckResponse.FromString,
    )
    answer = check(b"", timeout=60, metadata=metadata(OLD))
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.parametrize(
    "headers",
    [
        (("authorization", OLD),), (("authorization", f"Basic {OLD}"),),
        (("authorization", f"Bearer {OLD}"), ("authorization", f"Bearer {OLD}")),
        (("authorization", "Bearer"),), (("x-authorization", f"Bearer {OLD}"),),
    ],
)  # fmt: skip
def test_only_one_bearer_header_counts(launch: Launch, tmp_path: Path, headers: Any) -> None:
    server = launch(token_file=write_tokens(tmp_path / "tokens", OLD))
    with pytest.raises(grpc.RpcError) as raised:
        server.call("GetServerInfo", b"", metadata=headers)
    assert server.refusal_of(raised.value).reason is Reason.UNAUTHENTICATED_CALLER


def test_rotation_old_then_both_then_new(
    launch: Launch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlxrt.server.auth.LOOK_INTERVAL_S", 0.0)
    file = write_tokens(tmp_path / "tokens", OLD)
    server = launch(token_file=file)
    for valid, invalid in (((OLD,), (NEW,)), ((OLD, NEW), ()), ((NEW,), (OLD,))):
        write_tokens(file, *valid)
        for token in valid:
            assert state_of(server, token) == model_pb2.SERVER_STATE_SERVING
        for token in invalid:
            assert refusal(server, token).reason is Reason.UNAUTHENTICATED_CALLER
    file.unlink()  # a mishap: what was known stays
    assert state_of(server, NEW) == model_pb2.SERVER_STATE_SERVING


def test_the_file_is_looked_at_once_a_second(tmp_path: Path) -> None:
    now_s = [0.0]
    file = write_tokens(tmp_path / "tokens", OLD)
    tokens = TokenFile(file, lambda: now_s[0])
    write_tokens(file, NEW)
    assert tokens.knows(OLD) and not tokens.knows(NEW)
    now_s[0] = LOOK_INTERVAL_S
    assert tokens.knows(NEW) and not tokens.knows(OLD)


@pytest.mark.parametrize(
    "content", ["", "\n\n", "short\n", f"{OLD}\n{NEW}\n{WRONG}\n", "tökén-of-0123456789\n"]
)
def test_a_file_that_can_not_be_used_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "tokens"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match="token") as raised:
        TokenFile(file)
    assert not any(line and line in str(raised.value) for line in content.splitlines())
    with pytest.raises(ConfigError, match="absent"):
        TokenFile(tmp_path / "absent")


def test_no_token_is_ever_logged(
    launch: Launch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    from mlxrt.telemetry.logs import configure_logs

    monkeypatch.setattr("mlxrt.server.auth.LOOK_INTERVAL_S", 0.0)
    before = logging.getLogger().handlers[:]
    configure_logs("json", "debug")
    try:
        file = write_tokens(tmp_path / "tokens", OLD)
        server = launch(token_file=file)
        refusal(server, WRONG)
        state_of(server, OLD)
        write_tokens(file, OLD, NEW)
        state_of(server, NEW)
        write_tokens(file, "short")
        state_of(server, NEW)
    finally:
        logging.getLogger().handlers[:] = before
    said = capfd.readouterr().err
    assert "tokens read again" in said and "tokens kept" in said
    assert not any(token in said for token in (OLD, NEW, WRONG, "short"))


def test_the_python_clients_send_it(launch: Launch, tmp_path: Path) -> None:
    server = launch(token_file=write_tokens(tmp_path / "tokens", OLD))
    address, tokens = server.server.address, iter([OLD, OLD, OLD])
    with Client(address, token=OLD) as client, client.open_session() as session:
        session.allocate_blocks({0: 1})
        with session.stream() as stream:
            assert stream.submit(session_step()).result().step_number == 1
    with Client(address, token=lambda: next(tokens)) as client:
        assert client.server_info().state == model_pb2.SERVER_STATE_SERVING
    with Client(address, token=WRONG, retry=RetryPolicy(patience_s=5)) as client:
        with pytest.raises(UnauthenticatedError):
            client.open_session()
        with pytest.raises(UnauthenticatedError):
            client.tokenizer_files()


def session_step() -> Any:
    from mlxrt_client.v1 import StepRequest

    return StepRequest()


async def test_the_asyncio_client_sends_it(launch: Launch, tmp_path: Path) -> None:
    server = launch(token_file=write_tokens(tmp_path / "tokens", OLD))
    async with aio.Client(server.server.address, token=OLD) as client:
        session = await client.open_session()
        async with await session.stream() as stream:
            assert (await (await stream.submit(session_step()))).step_number == 1
        await session.close()
    async with aio.Client(server.server.address, token=WRONG) as client:
        with pytest.raises(UnauthenticatedError):
            await client.server_info()


def test_a_client_sends_no_token_over_a_network_in_plain_text() -> None:
    for address in ("example.org:50061", "10.0.0.1:50061", "localhost.evil:1", "127.0.0.1.evil:1"):
        with pytest.raises(ValueError, match="TLS"):
            Client(address, token=OLD)
    Client("localhost:1", token=OLD).close()


def test_a_refused_call_changes_nothing(launch: Launch, tmp_path: Path) -> None:
    server = launch(token_file=write_tokens(tmp_path / "tokens", OLD))
    before = server.digest()
    request = session_pb2.OpenSessionRequest(request_id="r")
    with pytest.raises(grpc.RpcError):
        server.call("OpenSession", request, metadata=metadata(WRONG))
    assert server.digest() == before
