"""grpc.health.v1: one status for the whole server and each service, pushed to every watcher at
every change.

grpcio-health-checking's own servicer writes to watchers under the lock that a change needs, so one
that does not read would keep all others, and the drain, waiting. Here each watcher has a queue of
its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection

import grpc
from grpc_health.v1 import health_pb2

from mlxrt.errors import MlxrtError
from mlxrt.server.handler import Context, abort, parse, serialize
from mlxrt.server.lifecycle import Lifecycle, ServerState

NAME = "grpc.health.v1.Health"
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class HealthService:
    """The health of `services` and of "", all the same: SERVING while new work is taken and the
    device answers, else NOT_SERVING."""

    def __init__(self, lifecycle: Lifecycle, services: Collection[str]) -> None:
        self._services = {"", *services}
        self._status = _NOT_SERVING
        self._watchers: set[asyncio.Queue[int | None]] = set()
        self._lifecycle = lifecycle
        lifecycle.subscribe(self._on_state)

    def handler(self) -> grpc.GenericRpcHandler:
        """What a grpc.aio server serves."""
        return grpc.method_handlers_generic_handler(
            NAME,
            {
                "Check": grpc.unary_unary_rpc_method_handler(self._check),
                "Watch": grpc.unary_stream_rpc_method_handler(self._watch),
            },
        )

    def close(self) -> None:
        """Ends every watch once what is due has been written."""
        for watcher in self._watchers:
            watcher.put_nowait(None)

    def _on_state(self, state: ServerState) -> None:
        well = state is ServerState.SERVING and not self._lifecycle.stalled
        status = _SERVING if well else _NOT_SERVING
        if status != self._status:
            self._status = status
            for watcher in self._watchers:
                watcher.put_nowait(status)

    async def _check(self, data: bytes, context: Context) -> bytes:
        if await _service(data, context) not in self._services:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such service")
        return _response(self._status)

    async def _watch(self, data: bytes, context: Context) -> None:
        known = await _service(data, context) in self._services
        # States change three times in a server's life and stalls are rare: no bound is needed.
        changes: asyncio.Queue[int | None] = asyncio.Queue()
        self._watchers.add(changes)
        try:
            await context.write(_response(self._status if known else _UNKNOWN))
            while (status := await changes.get()) is not None:
                if known:
                    await context.write(_response(status))
        finally:
            self._watchers.discard(changes)


async def _service(data: bytes, context: Context) -> str:
    try:
        service: str = parse(health_pb2.HealthCheckRequest, data).service
        return service
    except MlxrtError as error:
        refusal = error
    await abort(context, refusal)


def _response(status: int) -> bytes:
    return serialize(health_pb2.HealthCheckResponse(status=status))
