"""SessionService."""

from __future__ import annotations

import secrets
from collections.abc import Callable

import grpc
import structlog
from google.protobuf.message import Message
from mlxrt_client.v1 import block_pb2, session_pb2

from mlxrt.core.answers import SequenceSnapshot, SessionRef
from mlxrt.errors import field_invalid, limit_exceeded
from mlxrt.server.decode_fields import decode_client_name, decode_request_id
from mlxrt.server.encode import encode_tables
from mlxrt.server.errors import encode_error
from mlxrt.server.handler import parse, serialize, unary
from mlxrt.server.lifecycle import Lifecycle
from mlxrt.server.runtime import Runtime

NAME = "mlxrt.v1.SessionService"
_SESSION_ID_BYTES = 16
_SEED_BITS = 64
_log = structlog.get_logger("mlxrt.server")


def decode_session(message: Message) -> SessionRef:
    """The `session` of a request; raises FIELD_INVALID where it is unset."""
    if not message.HasField("session"):
        raise field_invalid("session", "required")
    return SessionRef(message.session.session_id, message.session.epoch)


class SessionService:
    """The rpcs, bytes to bytes.

    Args:
        runtime: answers the runtime, or raises LOADING or DEVICE_LOST.
        instance_id: of this start of the server.
        random_bits: answers that many random bits, for session ids and seeds.
    """

    def __init__(
        self,
        runtime: Callable[[], Runtime],
        lifecycle: Lifecycle,
        instance_id: str,
        random_bits: Callable[[int], int] = secrets.randbits,
    ) -> None:
        self._runtime = runtime
        self._random_bits = random_bits
        self._lifecycle = lifecycle
        self._instance_id = instance_id

    def handler(self) -> grpc.GenericRpcHandler:
        """What a grpc.aio server serves."""
        rpcs = {
            "OpenSession": self.open,
            "RenewSession": self.renew,
            "ResumeSession": self.resume,
            "GetSession": self.get,
            "CloseSession": self.close,
        }
        return grpc.method_handlers_generic_handler(
            NAME,
            {name: unary(name, run, self._examine) for name, run in rpcs.items()},
        )

    def _examine(self) -> None:
        self._runtime().dispatcher.examine()

    def open(self, data: bytes) -> bytes:
        """OpenSession."""
        request = parse(session_pb2.OpenSessionRequest, data)
        runtime = self._runtime()
        self._lifecycle.check_starting()
        decode_request_id(request.request_id)
        client_name = decode_client_name(request.client_name)
        new_id = self._random_bits(8 * _SESSION_ID_BYTES).to_bytes(_SESSION_ID_BYTES).hex()
        opened = runtime.core.open_session(
            request.request_id, request.lease_ttl_ms, client_name,
            session_id=new_id,
            session_seed=self._random_bits(_SEED_BITS),
            now_ms=runtime.now_ms(),
        )  # fmt: skip
        if opened.session.session_id == new_id:  # else a repeat
            _log.info(
                "session open", session_id=new_id, client_name=client_name,
                lease_ttl_ms=opened.lease_ttl_ms,
            )  # fmt: skip
        return serialize(
            session_pb2.OpenSessionResponse(
                session=_ref(opened.session),
                lease_ttl_ms=opened.lease_ttl_ms,
                instance_id=self._instance_id,
            )
        )

    def renew(self, data: bytes) -> bytes:
        """RenewSession."""
        request = parse(session_pb2.RenewSessionRequest, data)
        runtime = self._runtime()
        ttl_ms = runtime.core.renew(decode_session(request), runtime.now_ms())
        return serialize(session_pb2.RenewSessionResponse(lease_ttl_ms=ttl_ms))

    def resume(self, data: bytes) -> bytes:
        """ResumeSession."""
        request = parse(session_pb2.ResumeSessionRequest, data)
        runtime = self._runtime()
        decode_request_id(request.request_id)
        ref = decode_session(request)
        resumed = runtime.core.resume(ref, request.request_id, runtime.now_ms())
        runtime.dispatcher.pump()
        _log.info("session resumed", session_id=ref.session_id, epoch=resumed.session.epoch)
        return serialize(
            session_pb2.ResumeSessionResponse(
                session=_ref(resumed.session),
                lease_ttl_ms=resumed.lease_ttl_ms,
                next_step_number=resumed.next_step_number,
            )
        )

    def get(self, data: bytes) -> bytes:
        """GetSession."""
        request = parse(session_pb2.GetSessionRequest, data)
        runtime = self._runtime()
        ref = decode_session(request)
        count, maximum = len(request.sequence_ids), runtime.limits.max_sequences
        if count > maximum:
            raise limit_exceeded("max_sequences", maximum, count, "sequence_ids")
        chosen = frozenset(request.sequence_ids) or None
        if request.include_tokens:
            _check_tokens_fit(runtime, ref, chosen)
        snapshot = runtime.core.read_session(
            ref, chosen, include_tables=request.include_tables,
            include_tokens=request.include_tokens,
        )  # fmt: skip
        answer = serialize(
            session_pb2.GetSessionResponse(
                lease_ttl_ms=snapshot.lease_ttl_ms,
                next_step_number=snapshot.next_step_number,
                inflight_step_numbers=snapshot.inflight_step_numbers,
                leased_blocks=encode_tables(snapshot.leased_blocks),
                sequences=[_sequence(s) for s in snapshot.sequences],
            )
        )
        maximum = runtime.limits.max_message_bytes
        if len(answer) > maximum:
            path = "include_tokens" if request.include_tokens else "include_tables"
            raise limit_exceeded("max_message_bytes", maximum, len(answer), path)
        runtime.core.renew(ref, runtime.now_ms())
        return answer

    def close(self, data: bytes) -> bytes:
        """CloseSession."""
        request = parse(session_pb2.CloseSessionRequest, data)
        runtime = self._runtime()
        closed = runtime.core.close_session(decode_session(request), runtime.now_ms())
        runtime.dispatcher.pump()
        _log.info("session closed", session_id=closed.session_id, client_name=closed.client_name)
        return serialize(
            session_pb2.CloseSessionResponse(
                freed_blocks=[
                    block_pb2.BlockCount(group=group, count=count)
                    for group, count in sorted(closed.freed_block_counts.items())
                ],
                released_sequence_count=closed.released_sequence_count,
            )
        )


def _check_tokens_fit(runtime: Runtime, ref: SessionRef, chosen: frozenset[int] | None) -> None:
    """Refuses tokens that can't fit, a byte each at least, before any is looked at."""
    state = runtime.core.read_session(ref, chosen, include_tables=False, include_tokens=False)
    count, maximum = sum(s.token_count for s in state.sequences), runtime.limits.max_message_bytes
    if count > maximum:
        raise limit_exceeded("max_message_bytes", maximum, count, "include_tokens")


def _ref(session: SessionRef) -> session_pb2.SessionRef:
    return session_pb2.SessionRef(session_id=session.session_id, epoch=session.epoch)


def _sequence(snapshot: SequenceSnapshot) -> session_pb2.SequenceState:
    message = session_pb2.SequenceState(
        sequence_id=snapshot.sequence_id,
        position=snapshot.position,
        token_count=snapshot.token_count,
        tables=encode_tables(snapshot.tables),
        token_ids=snapshot.token_ids,
    )
    if snapshot.failure is not None:
        message.failure.CopyFrom(encode_error(snapshot.failure))
    return message
