from . import block_pb2 as _block_pb2
from . import error_pb2 as _error_pb2
from . import sequence_pb2 as _sequence_pb2
from . import session_pb2 as _session_pb2
from . import step_pb2 as _step_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class AllocateBlocksRequest(_message.Message):
    __slots__ = ("session", "request_id", "counts")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    session: _session_pb2.SessionRef
    request_id: str
    counts: _containers.RepeatedCompositeFieldContainer[_block_pb2.BlockCount]
    def __init__(self, session: _Optional[_Union[_session_pb2.SessionRef, _Mapping]] = ..., request_id: _Optional[str] = ..., counts: _Optional[_Iterable[_Union[_block_pb2.BlockCount, _Mapping]]] = ...) -> None: ...

class AllocateBlocksResponse(_message.Message):
    __slots__ = ("blocks",)
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    blocks: _containers.RepeatedCompositeFieldContainer[_block_pb2.BlockTable]
    def __init__(self, blocks: _Optional[_Iterable[_Union[_block_pb2.BlockTable, _Mapping]]] = ...) -> None: ...

class FreeBlocksRequest(_message.Message):
    __slots__ = ("session", "request_id", "blocks")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    session: _session_pb2.SessionRef
    request_id: str
    blocks: _containers.RepeatedCompositeFieldContainer[_block_pb2.BlockTable]
    def __init__(self, session: _Optional[_Union[_session_pb2.SessionRef, _Mapping]] = ..., request_id: _Optional[str] = ..., blocks: _Optional[_Iterable[_Union[_block_pb2.BlockTable, _Mapping]]] = ...) -> None: ...

class FreeBlocksResponse(_message.Message):
    __slots__ = ("free_blocks",)
    FREE_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    free_blocks: _containers.RepeatedCompositeFieldContainer[_block_pb2.BlockCount]
    def __init__(self, free_blocks: _Optional[_Iterable[_Union[_block_pb2.BlockCount, _Mapping]]] = ...) -> None: ...

class PrefillChunk(_message.Message):
    __slots__ = ("sequence", "sequence_id", "start_position", "row_count", "append", "sample")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_ID_FIELD_NUMBER: _ClassVar[int]
    START_POSITION_FIELD_NUMBER: _ClassVar[int]
    ROW_COUNT_FIELD_NUMBER: _ClassVar[int]
    APPEND_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_FIELD_NUMBER: _ClassVar[int]
    sequence: _sequence_pb2.NewSequence
    sequence_id: int
    start_position: int
    row_count: int
    append: _containers.RepeatedCompositeFieldContainer[_block_pb2.BlockTable]
    sample: bool
    def __init__(self, sequence: _Optional[_Union[_sequence_pb2.NewSequence, _Mapping]] = ..., sequence_id: _Optional[int] = ..., start_position: _Optional[int] = ..., row_count: _Optional[int] = ..., append: _Optional[_Iterable[_Union[_block_pb2.BlockTable, _Mapping]]] = ..., sample: bool = ...) -> None: ...

class PrefillRequest(_message.Message):
    __slots__ = ("session", "step_number", "chunks")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    STEP_NUMBER_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    session: _session_pb2.SessionRef
    step_number: int
    chunks: _containers.RepeatedCompositeFieldContainer[PrefillChunk]
    def __init__(self, session: _Optional[_Union[_session_pb2.SessionRef, _Mapping]] = ..., step_number: _Optional[int] = ..., chunks: _Optional[_Iterable[_Union[PrefillChunk, _Mapping]]] = ...) -> None: ...

class PrefillResponse(_message.Message):
    __slots__ = ("step",)
    STEP_FIELD_NUMBER: _ClassVar[int]
    step: _step_pb2.StepResponse
    def __init__(self, step: _Optional[_Union[_step_pb2.StepResponse, _Mapping]] = ...) -> None: ...

class SequenceBlocks(_message.Message):
    __slots__ = ("sequence_id", "append")
    SEQUENCE_ID_FIELD_NUMBER: _ClassVar[int]
    APPEND_FIELD_NUMBER: _ClassVar[int]
    sequence_id: int
    append: _containers.RepeatedCompositeFieldContainer[_block_pb2.BlockTable]
    def __init__(self, sequence_id: _Optional[int] = ..., append: _Optional[_Iterable[_Union[_block_pb2.BlockTable, _Mapping]]] = ...) -> None: ...

class DecodeRequest(_message.Message):
    __slots__ = ("session", "step_number", "sequence_ids", "appended")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    STEP_NUMBER_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_IDS_FIELD_NUMBER: _ClassVar[int]
    APPENDED_FIELD_NUMBER: _ClassVar[int]
    session: _session_pb2.SessionRef
    step_number: int
    sequence_ids: _containers.RepeatedScalarFieldContainer[int]
    appended: _containers.RepeatedCompositeFieldContainer[SequenceBlocks]
    def __init__(self, session: _Optional[_Union[_session_pb2.SessionRef, _Mapping]] = ..., step_number: _Optional[int] = ..., sequence_ids: _Optional[_Iterable[int]] = ..., appended: _Optional[_Iterable[_Union[SequenceBlocks, _Mapping]]] = ...) -> None: ...

class DecodeResponse(_message.Message):
    __slots__ = ("step",)
    STEP_FIELD_NUMBER: _ClassVar[int]
    step: _step_pb2.StepResponse
    def __init__(self, step: _Optional[_Union[_step_pb2.StepResponse, _Mapping]] = ...) -> None: ...

class ExecuteRequest(_message.Message):
    __slots__ = ("step", "sampling", "traceparent", "tracestate")
    STEP_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENT_FIELD_NUMBER: _ClassVar[int]
    TRACESTATE_FIELD_NUMBER: _ClassVar[int]
    step: _step_pb2.StepRequest
    sampling: _step_pb2.DeferredSampling
    traceparent: str
    tracestate: str
    def __init__(self, step: _Optional[_Union[_step_pb2.StepRequest, _Mapping]] = ..., sampling: _Optional[_Union[_step_pb2.DeferredSampling, _Mapping]] = ..., traceparent: _Optional[str] = ..., tracestate: _Optional[str] = ...) -> None: ...

class ExecuteResponse(_message.Message):
    __slots__ = ("step", "error", "sampling_refusal")
    STEP_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_REFUSAL_FIELD_NUMBER: _ClassVar[int]
    step: _step_pb2.StepResponse
    error: _error_pb2.Error
    sampling_refusal: SamplingRefusal
    def __init__(self, step: _Optional[_Union[_step_pb2.StepResponse, _Mapping]] = ..., error: _Optional[_Union[_error_pb2.Error, _Mapping]] = ..., sampling_refusal: _Optional[_Union[SamplingRefusal, _Mapping]] = ...) -> None: ...

class SamplingRefusal(_message.Message):
    __slots__ = ("step_number", "error")
    STEP_NUMBER_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    step_number: int
    error: _error_pb2.Error
    def __init__(self, step_number: _Optional[int] = ..., error: _Optional[_Union[_error_pb2.Error, _Mapping]] = ...) -> None: ...

class SampleStepRequest(_message.Message):
    __slots__ = ("sampling",)
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    sampling: _step_pb2.DeferredSampling
    def __init__(self, sampling: _Optional[_Union[_step_pb2.DeferredSampling, _Mapping]] = ...) -> None: ...

class SampleStepResponse(_message.Message):
    __slots__ = ("step",)
    STEP_FIELD_NUMBER: _ClassVar[int]
    step: _step_pb2.StepResponse
    def __init__(self, step: _Optional[_Union[_step_pb2.StepResponse, _Mapping]] = ...) -> None: ...

class FreeSequencesRequest(_message.Message):
    __slots__ = ("session", "request_id", "sequence_ids", "free_blocks")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_IDS_FIELD_NUMBER: _ClassVar[int]
    FREE_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    session: _session_pb2.SessionRef
    request_id: str
    sequence_ids: _containers.RepeatedScalarFieldContainer[int]
    free_blocks: bool
    def __init__(self, session: _Optional[_Union[_session_pb2.SessionRef, _Mapping]] = ..., request_id: _Optional[str] = ..., sequence_ids: _Optional[_Iterable[int]] = ..., free_blocks: bool = ...) -> None: ...

class FreeSequencesResponse(_message.Message):
    __slots__ = ("freed_blocks",)
    FREED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    freed_blocks: _containers.RepeatedCompositeFieldContainer[_block_pb2.BlockTable]
    def __init__(self, freed_blocks: _Optional[_Iterable[_Union[_block_pb2.BlockTable, _Mapping]]] = ...) -> None: ...

class ExportBlocksRequest(_message.Message):
    __slots__ = ("session", "blocks")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    session: _session_pb2.SessionRef
    blocks: _block_pb2.BlockTable
    def __init__(self, session: _Optional[_Union[_session_pb2.SessionRef, _Mapping]] = ..., blocks: _Optional[_Union[_block_pb2.BlockTable, _Mapping]] = ...) -> None: ...

class ExportBlocksResponse(_message.Message):
    __slots__ = ("chunk", "chunk_crc32c")
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    CHUNK_CRC32C_FIELD_NUMBER: _ClassVar[int]
    chunk: bytes
    chunk_crc32c: int
    def __init__(self, chunk: _Optional[bytes] = ..., chunk_crc32c: _Optional[int] = ...) -> None: ...

class ImportBlocksRequest(_message.Message):
    __slots__ = ("session", "request_id", "blocks", "chunk", "chunk_crc32c")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    CHUNK_CRC32C_FIELD_NUMBER: _ClassVar[int]
    session: _session_pb2.SessionRef
    request_id: str
    blocks: _block_pb2.BlockTable
    chunk: bytes
    chunk_crc32c: int
    def __init__(self, session: _Optional[_Union[_session_pb2.SessionRef, _Mapping]] = ..., request_id: _Optional[str] = ..., blocks: _Optional[_Union[_block_pb2.BlockTable, _Mapping]] = ..., chunk: _Optional[bytes] = ..., chunk_crc32c: _Optional[int] = ...) -> None: ...

class ImportBlocksResponse(_message.Message):
    __slots__ = ("block_count",)
    BLOCK_COUNT_FIELD_NUMBER: _ClassVar[int]
    block_count: int
    def __init__(self, block_count: _Optional[int] = ...) -> None: ...
