"""Generic handlers: bytes in, bytes out, so that every failure on the way is ours to answer."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NoReturn, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message

from mlxrt.errors import MlxrtError, Reason
from mlxrt.server.errors import bare, defect, status_code, trailers
from mlxrt.server.wire_check import WireCheck

Context = Any
"""grpc.aio.ServicerContext, which is generic over messages that these handlers never see."""

M = TypeVar("M", bound=Message)
_UNLIMITED = WireCheck()
"""For messages whose lists no configured limit counts."""


def parse(message_type: type[M], data: bytes, wire: WireCheck = _UNLIMITED) -> M:
    """The message; raises MALFORMED_REQUEST where the bytes are none, and what `wire` raises where
    they would make too much."""
    wire.check(message_type.DESCRIPTOR, data)
    try:
        message: M = message_type.FromString(data)
    except (DecodeError, RecursionError) as error:
        raise MlxrtError(
            Reason.MALFORMED_REQUEST, f"the bytes are no {message_type.DESCRIPTOR.full_name}"
        ) from error
    return message


def serialize(message: Message) -> bytes:
    """The message's bytes."""
    data: bytes = message.SerializeToString()
    return data


async def abort(context: Context, error: MlxrtError) -> NoReturn:
    """Ends the call with the error's status and trailers."""
    await context.abort(status_code(error), error.message, trailers(error))
    raise AssertionError("abort does not return")


def unary(
    name: str,
    run: Callable[[bytes], Awaitable[bytes] | bytes],
    after_defect: Callable[[], None] | None = None,
) -> grpc.RpcMethodHandler:
    """A unary rpc; `run` answers at once or by an awaitable, and raises MlxrtError to refuse.

    Args:
        after_defect: called when `run` raised anything else, which the caller is told of after.
    """

    async def behave(data: bytes, context: Context) -> bytes:
        try:
            answer = run(data)
            return answer if isinstance(answer, bytes) else await answer
        except MlxrtError as error:
            refusal = bare(error)
        except Exception as error:
            refusal = defect(name, error)
            if after_defect is not None:
                with contextlib.suppress(MlxrtError):  # no runtime any more, so nothing to examine
                    after_defect()
        del data  # gRPC keeps an aborted call's frames in a cycle
        await abort(context, refusal)

    return grpc.unary_unary_rpc_method_handler(behave)


def server_stream(name: str, run: Callable[[bytes], AsyncIterator[bytes]]) -> grpc.RpcMethodHandler:
    """An rpc of one message in, many out; `run` raises MlxrtError to refuse."""

    async def behave(data: bytes, context: Context) -> None:
        try:
            async for piece in run(data):
                await context.write(piece)
            return
        except MlxrtError as error:
            refusal = bare(error)
        except Exception as error:
            refusal = defect(name, error)
        await abort(context, refusal)

    return grpc.unary_stream_rpc_method_handler(behave)


def refused_client_stream(error: MlxrtError) -> grpc.RpcMethodHandler:
    """An rpc of many messages in that is not served."""

    async def behave(_requests: object, context: Context) -> NoReturn:
        await abort(context, error)

    return grpc.stream_unary_rpc_method_handler(behave)
