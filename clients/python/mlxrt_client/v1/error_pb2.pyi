from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ErrorReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ERROR_REASON_UNSPECIFIED: _ClassVar[ErrorReason]
    ERROR_REASON_MALFORMED_REQUEST: _ClassVar[ErrorReason]
    ERROR_REASON_FIELD_INVALID: _ClassVar[ErrorReason]
    ERROR_REASON_FEATURE_UNSUPPORTED: _ClassVar[ErrorReason]
    ERROR_REASON_LIMIT_EXCEEDED: _ClassVar[ErrorReason]
    ERROR_REASON_SESSION_UNKNOWN: _ClassVar[ErrorReason]
    ERROR_REASON_EPOCH_STALE: _ClassVar[ErrorReason]
    ERROR_REASON_SEQUENCE_UNKNOWN: _ClassVar[ErrorReason]
    ERROR_REASON_SEQUENCE_EXISTS: _ClassVar[ErrorReason]
    ERROR_REASON_BLOCK_NOT_LEASED: _ClassVar[ErrorReason]
    ERROR_REASON_BLOCK_IN_USE: _ClassVar[ErrorReason]
    ERROR_REASON_BLOCK_SHARED: _ClassVar[ErrorReason]
    ERROR_REASON_BLOCK_HOLE: _ClassVar[ErrorReason]
    ERROR_REASON_BLOCK_UNFILLED: _ClassVar[ErrorReason]
    ERROR_REASON_TABLE_TOO_SHORT: _ClassVar[ErrorReason]
    ERROR_REASON_SLOT_CONFLICT: _ClassVar[ErrorReason]
    ERROR_REASON_POSITION_INVALID: _ClassVar[ErrorReason]
    ERROR_REASON_NO_FREE_BLOCKS: _ClassVar[ErrorReason]
    ERROR_REASON_TOO_MANY_INFLIGHT_STEPS: _ClassVar[ErrorReason]
    ERROR_REASON_TOO_MANY_SESSIONS: _ClassVar[ErrorReason]
    ERROR_REASON_STEP_GAP: _ClassVar[ErrorReason]
    ERROR_REASON_STEP_MISMATCH: _ClassVar[ErrorReason]
    ERROR_REASON_STEP_STALE: _ClassVar[ErrorReason]
    ERROR_REASON_REQUEST_MISMATCH: _ClassVar[ErrorReason]
    ERROR_REASON_PREDECESSOR_FAILED: _ClassVar[ErrorReason]
    ERROR_REASON_STREAM_REPLACED: _ClassVar[ErrorReason]
    ERROR_REASON_EXECUTION_FAILED: _ClassVar[ErrorReason]
    ERROR_REASON_DEVICE_LOST: _ClassVar[ErrorReason]
    ERROR_REASON_LOADING: _ClassVar[ErrorReason]
    ERROR_REASON_DRAINING: _ClassVar[ErrorReason]
    ERROR_REASON_NON_FINITE_LOGITS: _ClassVar[ErrorReason]
    ERROR_REASON_MASK_EMPTY: _ClassVar[ErrorReason]
    ERROR_REASON_INTERNAL_DEFECT: _ClassVar[ErrorReason]
    ERROR_REASON_UNAUTHENTICATED_CALLER: _ClassVar[ErrorReason]
    ERROR_REASON_POSITION_UNKNOWN: _ClassVar[ErrorReason]
ERROR_REASON_UNSPECIFIED: ErrorReason
ERROR_REASON_MALFORMED_REQUEST: ErrorReason
ERROR_REASON_FIELD_INVALID: ErrorReason
ERROR_REASON_FEATURE_UNSUPPORTED: ErrorReason
ERROR_REASON_LIMIT_EXCEEDED: ErrorReason
ERROR_REASON_SESSION_UNKNOWN: ErrorReason
ERROR_REASON_EPOCH_STALE: ErrorReason
ERROR_REASON_SEQUENCE_UNKNOWN: ErrorReason
ERROR_REASON_SEQUENCE_EXISTS: ErrorReason
ERROR_REASON_BLOCK_NOT_LEASED: ErrorReason
ERROR_REASON_BLOCK_IN_USE: ErrorReason
ERROR_REASON_BLOCK_SHARED: ErrorReason
ERROR_REASON_BLOCK_HOLE: ErrorReason
ERROR_REASON_BLOCK_UNFILLED: ErrorReason
ERROR_REASON_TABLE_TOO_SHORT: ErrorReason
ERROR_REASON_SLOT_CONFLICT: ErrorReason
ERROR_REASON_POSITION_INVALID: ErrorReason
ERROR_REASON_NO_FREE_BLOCKS: ErrorReason
ERROR_REASON_TOO_MANY_INFLIGHT_STEPS: ErrorReason
ERROR_REASON_TOO_MANY_SESSIONS: ErrorReason
ERROR_REASON_STEP_GAP: ErrorReason
ERROR_REASON_STEP_MISMATCH: ErrorReason
ERROR_REASON_STEP_STALE: ErrorReason
ERROR_REASON_REQUEST_MISMATCH: ErrorReason
ERROR_REASON_PREDECESSOR_FAILED: ErrorReason
ERROR_REASON_STREAM_REPLACED: ErrorReason
ERROR_REASON_EXECUTION_FAILED: ErrorReason
ERROR_REASON_DEVICE_LOST: ErrorReason
ERROR_REASON_LOADING: ErrorReason
ERROR_REASON_DRAINING: ErrorReason
ERROR_REASON_NON_FINITE_LOGITS: ErrorReason
ERROR_REASON_MASK_EMPTY: ErrorReason
ERROR_REASON_INTERNAL_DEFECT: ErrorReason
ERROR_REASON_UNAUTHENTICATED_CALLER: ErrorReason
ERROR_REASON_POSITION_UNKNOWN: ErrorReason

class FieldViolation(_message.Message):
    __slots__ = ("field", "description")
    FIELD_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    field: str
    description: str
    def __init__(self, field: _Optional[str] = ..., description: _Optional[str] = ...) -> None: ...

class Error(_message.Message):
    __slots__ = ("code", "reason", "message", "metadata", "field_violations", "retry_delay")
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    CODE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    FIELD_VIOLATIONS_FIELD_NUMBER: _ClassVar[int]
    RETRY_DELAY_FIELD_NUMBER: _ClassVar[int]
    code: int
    reason: ErrorReason
    message: str
    metadata: _containers.ScalarMap[str, str]
    field_violations: _containers.RepeatedCompositeFieldContainer[FieldViolation]
    retry_delay: _duration_pb2.Duration
    def __init__(self, code: _Optional[int] = ..., reason: _Optional[_Union[ErrorReason, str]] = ..., message: _Optional[str] = ..., metadata: _Optional[_Mapping[str, str]] = ..., field_violations: _Optional[_Iterable[_Union[FieldViolation, _Mapping]]] = ..., retry_delay: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ...) -> None: ...
