"""Errors on the wire: mlxrt.v1.Error, and the status, details and trailers that a failed call ends
with."""

from __future__ import annotations

import secrets

import grpc
import structlog
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from mlxrt_client.v1 import error_pb2

from mlxrt.errors import MlxrtError, Reason

DOMAIN = "mlxrt"
ERROR_TRAILER = "mlxrt-error-bin"
STATUS_TRAILER = "grpc-status-details-bin"
DETAILS_BYTES_MAX = 2_500
"""Most bytes of each trailer: clients refuse headers above 8 KiB in all. Later field violations
are left out first."""

_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}
_log = structlog.get_logger("mlxrt.server")


def encode_error(error: MlxrtError) -> error_pb2.Error:
    """The error in flat form."""
    message = error_pb2.Error(
        code=int(error.reason.code),
        reason=error_pb2.ErrorReason.Name(error.reason.number),
        message=error.message,
        metadata=dict(error.metadata),
        field_violations=[
            error_pb2.FieldViolation(field=v.field, description=v.description)
            for v in error.violations
        ],
    )
    if error.retry_delay_ms is not None:
        message.retry_delay.FromMilliseconds(error.retry_delay_ms)
    return message


def encode_status(error: MlxrtError) -> status_pb2.Status:
    """google.rpc.Status with one ErrorInfo, BadRequest where fields are at fault, RetryInfo where
    a retry helps."""
    info = error_details_pb2.ErrorInfo(
        reason=error.reason.name, domain=DOMAIN, metadata=dict(error.metadata)
    )
    details: list[object] = [info]
    if error.violations:
        bad_request = error_details_pb2.BadRequest()
        for violation in error.violations:
            bad_request.field_violations.add(
                field=violation.field, description=violation.description
            )
        details.append(bad_request)
    if error.retry_delay_ms is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(error.retry_delay_ms)
        details.append(retry)
    status = status_pb2.Status(code=int(error.reason.code), message=error.message)
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status


def trailers(error: MlxrtError) -> tuple[tuple[str, bytes], ...]:
    """The trailers of a call that fails with `error`, each at most DETAILS_BYTES_MAX bytes or with
    one violation."""
    violations = list(error.violations)
    while True:
        flat = encode_error(error).SerializeToString()
        rich = encode_status(error).SerializeToString()
        if max(len(flat), len(rich)) <= DETAILS_BYTES_MAX or len(violations) <= 1:
            return ((STATUS_TRAILER, rich), (ERROR_TRAILER, flat))
        violations = violations[: len(violations) // 2]
        error = MlxrtError(
            error.reason, error.message, violations, error.metadata, error.retry_delay_ms
        )


def bare(error: MlxrtError) -> MlxrtError:
    """The error without the frames that it came through, which hold the request: kept in a local
    of one of them it would be a cycle, and the request would wait for the garbage collector."""
    error.__context__ = error.__cause__ = None
    return error.with_traceback(None)


def status_code(error: MlxrtError) -> grpc.StatusCode:
    """The code that a call fails with."""
    return _CODES[int(error.reason.code)]


def defect(where: str, cause: BaseException) -> MlxrtError:
    """Logs an exception that nobody expected and answers the INTERNAL_DEFECT that stands for it,
    without its text."""
    defect_id = secrets.token_hex(8)
    _log.error("internal defect", where=where, defect_id=defect_id, exc_info=cause)
    return MlxrtError(
        Reason.INTERNAL_DEFECT, f"a defect of the server; its log has it as {defect_id}",
        metadata={"defect_id": defect_id},
    )  # fmt: skip
