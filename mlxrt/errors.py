"""The domain's errors and the only map from each to a status code and a remedy."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


class StatusCode(enum.IntEnum):
    """Status codes as numbered by google.rpc.Code; here so that the core needs no grpc."""

    OK = 0
    INVALID_ARGUMENT = 3
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    UNAUTHENTICATED = 16


class Reason(enum.Enum):
    """Cause of an error: `(number in mlxrt.v1.ErrorReason, status code)`.

    What each means and what a client does about it stands in `protos/mlxrt/v1/error.proto`; a test
    holds the two together.
    """

    MALFORMED_REQUEST = (1, StatusCode.INVALID_ARGUMENT)
    FIELD_INVALID = (2, StatusCode.INVALID_ARGUMENT)
    FEATURE_UNSUPPORTED = (3, StatusCode.UNIMPLEMENTED)
    LIMIT_EXCEEDED = (4, StatusCode.RESOURCE_EXHAUSTED)
    SESSION_UNKNOWN = (5, StatusCode.NOT_FOUND)
    EPOCH_STALE = (6, StatusCode.ABORTED)
    SEQUENCE_UNKNOWN = (7, StatusCode.NOT_FOUND)
    SEQUENCE_EXISTS = (8, StatusCode.ALREADY_EXISTS)
    BLOCK_NOT_LEASED = (9, StatusCode.FAILED_PRECONDITION)
    BLOCK_IN_USE = (10, StatusCode.FAILED_PRECONDITION)
    BLOCK_SHARED = (11, StatusCode.FAILED_PRECONDITION)
    BLOCK_HOLE = (12, StatusCode.INVALID_ARGUMENT)
    BLOCK_UNFILLED = (13, StatusCode.FAILED_PRECONDITION)
    TABLE_TOO_SHORT = (14, StatusCode.INVALID_ARGUMENT)
    SLOT_CONFLICT = (15, StatusCode.INVALID_ARGUMENT)
    POSITION_INVALID = (16, StatusCode.INVALID_ARGUMENT)
    NO_FREE_BLOCKS = (17, StatusCode.RESOURCE_EXHAUSTED)
    TOO_MANY_INFLIGHT_STEPS = (18, StatusCode.RESOURCE_EXHAUSTED)
    TOO_MANY_SESSIONS = (19, StatusCode.RESOURCE_EXHAUSTED)
    STEP_GAP = (20, StatusCode.FAILED_PRECONDITION)
    STEP_MISMATCH = (21, StatusCode.FAILED_PRECONDITION)
    STEP_STALE = (22, StatusCode.FAILED_PRECONDITION)
    REQUEST_MISMATCH = (23, StatusCode.FAILED_PRECONDITION)
    PREDECESSOR_FAILED = (24, StatusCode.ABORTED)
    STREAM_REPLACED = (25, StatusCode.ABORTED)
    EXECUTION_FAILED = (26, StatusCode.INTERNAL)
    DEVICE_LOST = (27, StatusCode.INTERNAL)
    LOADING = (28, StatusCode.UNAVAILABLE)
    DRAINING = (29, StatusCode.UNAVAILABLE)
    NON_FINITE_LOGITS = (30, StatusCode.INTERNAL)
    MASK_EMPTY = (31, StatusCode.INVALID_ARGUMENT)
    INTERNAL_DEFECT = (32, StatusCode.INTERNAL)
    UNAUTHENTICATED_CALLER = (33, StatusCode.UNAUTHENTICATED)
    POSITION_UNKNOWN = (34, StatusCode.FAILED_PRECONDITION)

    @property
    def number(self) -> int:
        """Value of the same reason in mlxrt.v1.ErrorReason."""
        return self.value[0]

    @property
    def code(self) -> StatusCode:
        """Status code that a call refused for this reason ends with."""
        return self.value[1]


@dataclass(frozen=True, slots=True)
class Violation:
    """One field at fault: its path from the request's root, and what would be right."""

    field: str
    description: str


@dataclass(slots=True)
class MlxrtError(Exception):
    """A refusal or a failure that a client can act on. Raised before anything changed.

    Attributes:
        reason: the cause.
        message: for people, one sentence.
        violations: the fields at fault; empty where no field is.
        metadata: facts by name, as error.proto lists them for the reason.
        retry_delay_ms: wait after which the same request may succeed; None where no wait helps.
    """

    reason: Reason
    message: str
    violations: Sequence[Violation] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    retry_delay_ms: int | None = None

    def __str__(self) -> str:
        fields = "; ".join(f"{v.field}: {v.description}" for v in self.violations)
        return f"{self.reason.name}: {self.message}" + (f" ({fields})" if fields else "")


def field_invalid(path: str, description: str) -> MlxrtError:
    """An INVALID_ARGUMENT that names one field."""
    return field_error(Reason.FIELD_INVALID, path, description)


def field_error(reason: Reason, path: str, description: str, **metadata: str) -> MlxrtError:
    """An error of `reason` whose cause is one field."""
    return MlxrtError(reason, f"{path}: {description}", (Violation(path, description),), metadata)


def limit_exceeded(limit: str, maximum: int, value: int, path: str) -> MlxrtError:
    """A LIMIT_EXCEEDED that names the limit as mlxrt.v1.Limits does, its value and the value asked
    for."""
    return field_error(
        Reason.LIMIT_EXCEEDED, path, f"{value} exceeds {limit} = {maximum}",
        limit=limit, maximum=str(maximum), value=str(value),
    )  # fmt: skip


def unsupported(path: str) -> MlxrtError:
    """A FEATURE_UNSUPPORTED that names the field or rpc."""
    return field_error(
        Reason.FEATURE_UNSUPPORTED, path, "this server does not serve it", field=path
    )
