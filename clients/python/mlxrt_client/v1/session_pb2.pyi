from . import block_pb2 as _block_pb2
from . import error_pb2 as _error_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SessionRef(_message.Message):
    __slots__ = ("session_id", "epoch")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    epoch: int
    def __init__(self, session_id: _Optional[str] = ..., epoch: _Optional[int] = ...) -> None: ...

class OpenSessionRequest(_message.Message):
    __slots__ = ("request_id", "lease_ttl_ms", "client_name")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    LEASE_TTL_MS_FIELD_NUMBER: _ClassVar[int]
    CLIENT_NAME_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    lease_ttl_ms: int
    client_name: str
    def __init__(self, request_id: _Optional[str] = ..., lease_ttl_ms: _Optional[int] = ..., client_name: _Optional[str] = ...) -> None: ...

class OpenSessionResponse(_message.Message):
    __slots__ = ("session", "lease_ttl_ms", "instance_id")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    LEASE_TTL_MS_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_ID_FIELD_NUMBER: _ClassVar[int]
    session: SessionRef
    lease_ttl_ms: int
    instance_id: str
    def __init__(self, session: _Optional[_Union[SessionRef, _Mapping]] = ..., lease_ttl_ms: _Optional[int] = ..., instance_id: _Optional[str] = ...) -> None: ...

class RenewSessionRequest(_message.Message):
    __slots__ = ("session",)
    SESSION_FIELD_NUMBER: _ClassVar[int]
    session: SessionRef
    def __init__(self, session: _Optional[_Union[SessionRef, _Mapping]] = ...) -> None: ...

class RenewSessionResponse(_message.Message):
    __slots__ = ("lease_ttl_ms",)
    LEASE_TTL_MS_FIELD_NUMBER: _ClassVar[int]
    lease_ttl_ms: int
    def __init__(self, lease_ttl_ms: _Optional[int] = ...) -> None: ...

class ResumeSessionRequest(_message.Message):
    __slots__ = ("request_id", "session")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    session: SessionRef
    def __init__(self, request_id: _Optional[str] = ..., session: _Optional[_Union[SessionRef, _Mapping]] = ...) -> None: ...

class ResumeSessionResponse(_message.Message):
    __slots__ = ("session", "lease_ttl_ms", "next_step_number")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    LEASE_TTL_MS_FIELD_NUMBER: _ClassVar[int]
    NEXT_STEP_NUMBER_FIELD_NUMBER: _ClassVar[int]
    session: SessionRef
    lease_ttl_ms: int
    next_step_number: int
    def __init__(self, session: _Optional[_Union[SessionRef, _Mapping]] = ..., lease_ttl_ms: _Optional[int] = ..., next_step_number: _Optional[int] = ...) -> None: ...

class GetSessionRequest(_message.Message):
    __slots__ = ("session", "include_tables", "include_tokens", "sequence_ids")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_TABLES_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_IDS_FIELD_NUMBER: _ClassVar[int]
    session: SessionRef
    include_tables: bool
    include_tokens: bool
    sequence_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, session: _Optional[_Union[SessionRef, _Mapping]] = ..., include_tables: bool = ..., include_tokens: bool = ..., sequence_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class GetSessionResponse(_message.Message):
    __slots__ = ("lease_ttl_ms", "next_step_number", "inflight_step_numbers", "leased_blocks", "sequences")
    LEASE_TTL_MS_FIELD_NUMBER: _ClassVar[int]
    NEXT_STEP_NUMBER_FIELD_NUMBER: _ClassVar[int]
    INFLIGHT_STEP_NUMBERS_FIELD_NUMBER: _ClassVar[int]
    LEASED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    lease_ttl_ms: int
    next_step_number: int
    inflight_step_numbers: _containers.RepeatedScalarFieldContainer[int]
    leased_blocks: _containers.RepeatedCompositeFieldContainer[_block_pb2.BlockTable]
    sequences: _containers.RepeatedCompositeFieldContainer[SequenceState]
    def __init__(self, lease_ttl_ms: _Optional[int] = ..., next_step_number: _Optional[int] = ..., inflight_step_numbers: _Optional[_Iterable[int]] = ..., leased_blocks: _Optional[_Iterable[_Union[_block_pb2.BlockTable, _Mapping]]] = ..., sequences: _Optional[_Iterable[_Union[SequenceState, _Mapping]]] = ...) -> None: ...

class SequenceState(_message.Message):
    __slots__ = ("sequence_id", "position", "token_count", "tables", "token_ids", "failure")
    SEQUENCE_ID_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    TOKEN_COUNT_FIELD_NUMBER: _ClassVar[int]
    TABLES_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    sequence_id: int
    position: int
    token_count: int
    tables: _containers.RepeatedCompositeFieldContainer[_block_pb2.BlockTable]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    failure: _error_pb2.Error
    def __init__(self, sequence_id: _Optional[int] = ..., position: _Optional[int] = ..., token_count: _Optional[int] = ..., tables: _Optional[_Iterable[_Union[_block_pb2.BlockTable, _Mapping]]] = ..., token_ids: _Optional[_Iterable[int]] = ..., failure: _Optional[_Union[_error_pb2.Error, _Mapping]] = ...) -> None: ...

class CloseSessionRequest(_message.Message):
    __slots__ = ("session",)
    SESSION_FIELD_NUMBER: _ClassVar[int]
    session: SessionRef
    def __init__(self, session: _Optional[_Union[SessionRef, _Mapping]] = ...) -> None: ...

class CloseSessionResponse(_message.Message):
    __slots__ = ("freed_blocks", "released_sequence_count")
    FREED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    RELEASED_SEQUENCE_COUNT_FIELD_NUMBER: _ClassVar[int]
    freed_blocks: _containers.RepeatedCompositeFieldContainer[_block_pb2.BlockCount]
    released_sequence_count: int
    def __init__(self, freed_blocks: _Optional[_Iterable[_Union[_block_pb2.BlockCount, _Mapping]]] = ..., released_sequence_count: _Optional[int] = ...) -> None: ...
