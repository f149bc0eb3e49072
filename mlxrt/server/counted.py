"""Counts calls: how many, how long, and what each ended with.

A generic handler is wrapped and not intercepted: grpc.aio runs interceptors as coroutines anew for
each call, and a wrapped handler is made once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from mlxrt_client.v1 import error_pb2

from mlxrt.errors import Reason
from mlxrt.server.errors import ERROR_TRAILER
from mlxrt.server.handler import Context
from mlxrt.telemetry.tallies import CallTally, Tallies

Behaviour = Callable[[Any, Context], Awaitable[Any]]
_OK = grpc.StatusCode.OK.name
_TYPES = {
    (False, False): ("unary", "unary_unary"),
    (False, True): ("server_stream", "unary_stream"),
    (True, False): ("client_stream", "stream_unary"),
    (True, True): ("bidi_stream", "stream_stream"),
}
"""By request_streaming and response_streaming: the label, and the handler's attribute."""
_SLACK = 0.05
"""Of a call's whole time: as much may be left at its deadline."""
_REASONS = {reason.number: reason for reason in Reason}


class CountedHandler(grpc.GenericRpcHandler):  # type: ignore[misc]
    """The same handlers, each call of them counted.

    Args:
        inner: its behaviours are coroutine functions.
    """

    def __init__(self, inner: grpc.GenericRpcHandler, tallies: Tallies) -> None:
        self._inner = inner
        self._tallies = tallies
        self._counted: dict[str, grpc.RpcMethodHandler] = {}

    def service(self, handler_call_details: Any) -> grpc.RpcMethodHandler | None:
        """As grpc.GenericRpcHandler."""
        method = handler_call_details.method
        counted = self._counted.get(method)
        if counted is None:
            handler = self._inner.service(handler_call_details)
            if handler is None:
                return None
            counted = self._counted[method] = counted_as(method, handler, handler, self._tallies)
        return counted


def counted_as(
    method: str, counts: grpc.RpcMethodHandler, runs: grpc.RpcMethodHandler, tallies: Tallies
) -> grpc.RpcMethodHandler:
    """A handler that does what `runs` does, counted as a call of `method`, which is `counts`.

    Args:
        method: as in "/mlxrt.v1.ModelService/GetServerInfo".
    """
    grpc_type, _ = _TYPES[counts.request_streaming, counts.response_streaming]
    _, service, name = method.split("/")
    tally = tallies.calls.setdefault((grpc_type, service, name), CallTally())
    _, attribute = _TYPES[runs.request_streaming, runs.response_streaming]
    make = getattr(grpc, f"{attribute}_rpc_method_handler")
    behave = _counting(getattr(runs, attribute), tally, tallies)
    handler: grpc.RpcMethodHandler = make(behave)
    return handler


def _counting(behave: Behaviour, tally: CallTally, tallies: Tallies) -> Behaviour:
    async def run(request: Any, context: Context) -> Any:
        tally.started += 1
        started_s = time.perf_counter()
        code = _OK
        try:
            return await behave(request, context)
        except grpc.aio.AbortError:
            code = context.code().name
            _count_reason(context, tallies)
            raise
        except asyncio.CancelledError:
            elapsed_s = time.perf_counter() - started_s
            expired = has_expired(elapsed_s, context.time_remaining())
            code = "DEADLINE_EXCEEDED" if expired else "CANCELLED"
            raise
        except BaseException:
            code = grpc.StatusCode.UNKNOWN.name
            raise
        finally:
            tally.ended[code] = tally.ended.get(code, 0) + 1
            tally.seconds.observe(time.perf_counter() - started_s)

    return run


def has_expired(elapsed_s: float, remaining_s: float | None) -> bool:
    """Whether a call that its client ended has met its deadline.

    The client's clock for it started before ours, and gRPC rounds what it sends of it up: the
    client gives up while a little is left here.

    Args:
        remaining_s: until the deadline, None where there is none.
    """
    return remaining_s is not None and remaining_s <= _SLACK * (elapsed_s + remaining_s)


def _count_reason(context: Context, tallies: Tallies) -> None:
    for key, value in context.trailing_metadata() or ():
        if key == ERROR_TRAILER:
            tallies.reject(_REASONS[error_pb2.Error.FromString(value).reason])
