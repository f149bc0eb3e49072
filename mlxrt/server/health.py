"""grpc.health.v1: whether the server is ready and whether it lives, pushed to every watcher at
every change.

"", "readiness" and the services are SERVING while new work is taken and the device answers;
"liveness" is until the device is lost, so that nobody restarts a server that loads or drains.

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
from mlxrt.server.errors import bare
from mlxrt.server.handler import Context, abort, parse, serialize
from mlxrt.server.lifecycle import Lifecycle, ServerState

NAME = "grpc.health.v1.Health"
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
LIVENESS = "liveness"
READINESS = "readiness"


class HealthService:
    """The health of "", "liveness", "readiness" and `services`."""

    def __init__(self, lifecycle: Lifecycle, services: Collection[str]) -> None:
        self._statuses = dict.fromkeys(("", LIVENESS, READINESS, *services), _NOT_SERVING)
        self._watchers: dict[asyncio.Queue[int | None], str] = {}
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
        ready, lives = self._lifecycle.ready, state is not ServerState.FAILED
        changed = set()
        for service, before in self._statuses.items():
            status = _SERVING if (lives if service == LIVENESS else ready) else _NOT_SERVING
            if status != before:
                self._statuses[service] = status
                changed.add(service)
        for watcher, service in self._watchers.items():
            if service in changed:
                watcher.put_nowait(self._statuses[service])

    async def _check(self, data: bytes, context: Context) -> bytes:
        status = self._statuses.get(await _service(data, context))
        if status is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such service")
        return _response(status)

    async def _watch(self, data: bytes, context: Context) -> None:
        service = await _service(data, context)
        # States change three times in a server's life and stalls are rare: no bound is needed.
        changes: asyncio.Queue[int | None] = asyncio.Queue()
        self._watchers[changes] = service
        try:
            await context.write(_response(self._statuses.get(service, _UNKNOWN)))
            while (status := await changes.get()) is not None:
                await context.write(_response(status))
        finally:
            del self._watchers[changes]


async def _service(data: bytes, context: Context) -> str:
    try:
        service: str = parse(health_pb2.HealthCheckRequest, data).service
        return service
    except MlxrtError as error:
        refusal = bare(error)
    await abort(context, refusal)


def _response(status: int | None) -> bytes:
    return serialize(health_pb2.HealthCheckResponse(status=status))
