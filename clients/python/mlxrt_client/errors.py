"""Typed exceptions, one for each thing that a caller can do about an error.

Every error of the server's is an `MlxrtError` of the subclass that `REASONS` or `CODES` gives; a
call that never reached an answer of the server's own is a `TransportError`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import grpc

from mlxrt_client.v1 import Error, ErrorReason

TRAILER = "mlxrt-error-bin"


@dataclass(frozen=True, slots=True)
class FieldProblem:
    """A field at fault: its path from the request's root, and what would be right."""

    field: str
    description: str


@dataclass(eq=False)
class MlxrtError(Exception):
    """A refusal or a failure, with what the server says about it.

    Attributes:
        reason: name in mlxrt.v1.ErrorReason less its prefix, as in "NO_FREE_BLOCKS"; "TRANSPORT"
            for a `TransportError`. Stable across releases.
        code: status code, as numbered by google.rpc.Code.
        message: for people; may change at any time.
        metadata: facts by name, as error.proto lists them for the reason.
        problems: the fields at fault.
        retry_delay_s: seconds after which the same request may succeed; None where no wait helps.
        accepted: true where a step was accepted, its number used, and then discarded.
    """

    reason: str
    code: int
    message: str
    metadata: Mapping[str, str] = field(default_factory=dict)
    problems: tuple[FieldProblem, ...] = ()
    retry_delay_s: float | None = None
    accepted: bool = False

    def __str__(self) -> str:
        problems = "; ".join(f"{p.field}: {p.description}" for p in self.problems)
        return f"{self.reason}: {self.message}" + (f" ({problems})" if problems else "")


class InvalidRequestError(MlxrtError):
    """The request is wrong in itself. Mend it."""


class UnsupportedError(MlxrtError):
    """The server does not serve this field or rpc; `metadata["field"]` names it. Leave it unset."""


class LimitError(MlxrtError):
    """The request is larger than a declared limit. Split it."""


class ExhaustedError(MlxrtError):
    """Something that others will give back is used up. Wait, or give something back."""


class OutOfBlocksError(ExhaustedError):
    """The pool has too few free blocks. Free blocks or preempt."""


class NotFoundError(MlxrtError):
    """The sequence is not registered."""


class AlreadyExistsError(MlxrtError):
    """The sequence id is taken. Release it first or choose another."""


class PreconditionError(MlxrtError):
    """The request does not fit the state that the server has."""


class StepNumberError(PreconditionError):
    """The step number is not the expected one, `metadata["expected_step_number"]`."""


class SessionLostError(MlxrtError):
    """The session is gone, and its blocks and sequences with it. Open a new one, prefill again."""


class FencedError(MlxrtError):
    """Somebody took the session or its stream over. Stop using it."""


class StepDiscardedError(MlxrtError):
    """The accepted step did not commit. Positions are where GetSession says. Schedule anew."""


class DeviceLostError(MlxrtError):
    """The server's device is lost and the server about to exit. Connect to its successor."""


class UnavailableError(MlxrtError):
    """The server loads or drains. Wait as `retry_delay_s` says."""


class SequenceFailedError(MlxrtError):
    """One sequence failed alone. Release it."""


class ServerDefectError(MlxrtError):
    """A defect of the server. Report it with its message."""


class UnauthenticatedError(MlxrtError):
    """The server does not know the token, or there was none. Bring one of its token file."""


class TransportError(MlxrtError):
    """No answer came: the server can't be reached, the call broke off, or its time was up."""


REASONS: Mapping[str, type[MlxrtError]] = {
    "LIMIT_EXCEEDED": LimitError,
    "SESSION_UNKNOWN": SessionLostError,
    "EPOCH_STALE": FencedError,
    "STREAM_REPLACED": FencedError,
    "NO_FREE_BLOCKS": OutOfBlocksError,
    "STEP_GAP": StepNumberError,
    "STEP_MISMATCH": StepNumberError,
    "STEP_STALE": StepNumberError,
    "PREDECESSOR_FAILED": StepDiscardedError,
    "EXECUTION_FAILED": StepDiscardedError,
    "DEVICE_LOST": DeviceLostError,
    "NON_FINITE_LOGITS": SequenceFailedError,
    "MASK_EMPTY": SequenceFailedError,
    "INTERNAL_DEFECT": ServerDefectError,
}
"""The class of each reason that is told apart within its status code."""

CODES: Mapping[int, type[MlxrtError]] = {
    3: InvalidRequestError,
    5: NotFoundError,
    6: AlreadyExistsError,
    8: ExhaustedError,
    9: PreconditionError,
    10: StepDiscardedError,
    12: UnsupportedError,
    13: ServerDefectError,
    14: UnavailableError,
    16: UnauthenticatedError,
}
"""The class of every other reason, one of a later server included, by status code."""

FATAL = (SessionLostError, FencedError, DeviceLostError)
"""Errors after which nothing in the session can succeed."""


def error_from_message(message: Error, *, accepted: bool = False) -> MlxrtError:
    """Returns the exception for an mlxrt.v1.Error, from a trailer or from inside a response."""
    try:
        reason = ErrorReason.Name(message.reason).removeprefix("ERROR_REASON_")
    except ValueError:
        reason = str(message.reason)
    delay_s = message.retry_delay.ToTimedelta().total_seconds()
    kind = REASONS.get(reason) or CODES.get(message.code, MlxrtError)
    return kind(
        reason=reason,
        code=message.code,
        message=message.message,
        metadata=dict(message.metadata),
        problems=tuple(FieldProblem(v.field, v.description) for v in message.field_violations),
        retry_delay_s=delay_s if message.HasField("retry_delay") else None,
        accepted=accepted,
    )


def error_from_rpc(error: grpc.RpcError) -> MlxrtError:
    """Returns the exception for a failed call: the server's own error, or a `TransportError`."""
    for key, value in error.trailing_metadata() or ():
        if key == TRAILER:
            return error_from_message(Error.FromString(value))
    code = error.code()
    return TransportError("TRANSPORT", code.value[0], f"{code.name}: {error.details()}")
