"""Who asks for a step, as far as tracing cares: carried from a call's metadata to the step."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

import grpc

SERVICE = "mlxrt.v1.ExecutionService"
CHARACTERS_MAX = 512
"""Longest traceparent and tracestate that are looked at; W3C asks for no more."""
STEP_RPCS = ("Step", "Prefill", "Decode", "Execute")
_TRACE_ID = re.compile(r"(?!0+$)[0-9a-f]{32}")
_METHODS = {f"/{SERVICE}/{name}": name for name in STEP_RPCS}


@dataclass(frozen=True, slots=True)
class Caller:
    """One call that brings steps.

    Attributes:
        rpc: its name, without the service.
        traceparent, tracestate: as W3C Trace Context defines them; empty without a trace.
    """

    rpc: str = ""
    traceparent: str = ""
    tracestate: str = ""

    @property
    def trace_id(self) -> str:
        """Of the trace, hexadecimal; empty without one that is valid."""
        parts = self.traceparent.split("-")
        trace_id = parts[1] if len(parts) > 1 else ""
        return trace_id if _TRACE_ID.fullmatch(trace_id) else ""

    def of_step(self, traceparent: str, tracestate: str) -> Caller:
        """The same call with the trace of one step in it, where that has one of its own."""
        if not traceparent or max(len(traceparent), len(tracestate)) > CHARACTERS_MAX:
            return self
        return replace(self, traceparent=traceparent, tracestate=tracestate)


NOBODY = Caller()
CALLER: ContextVar[Caller] = ContextVar("mlxrt_caller", default=NOBODY)
"""The call that the current task serves; set where tracing is on, or the log has its traces."""


class CallerInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Notes the caller of each step rpc in CALLER: gRPC runs interceptors in the call's own task,
    whose context the handler and the tasks that it starts inherit."""

    async def intercept_service(
        self,
        continuation: Callable[[Any], Awaitable[grpc.RpcMethodHandler | None]],
        handler_call_details: Any,
    ) -> grpc.RpcMethodHandler | None:
        """As grpc.aio.ServerInterceptor: the handler that there is."""
        rpc = _METHODS.get(handler_call_details.method)
        if rpc is not None:
            sent = dict(handler_call_details.invocation_metadata or ())
            CALLER.set(Caller(rpc, _text(sent, "traceparent"), _text(sent, "tracestate")))
        return await continuation(handler_call_details)


def _text(metadata: dict[str, str | bytes], key: str) -> str:
    value = metadata.get(key, "")
    return value if isinstance(value, str) and len(value) <= CHARACTERS_MAX else ""
