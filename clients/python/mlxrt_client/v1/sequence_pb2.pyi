from . import block_pb2 as _block_pb2
from . import sampling_pb2 as _sampling_pb2
from . import tensor_pb2 as _tensor_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class NewSequence(_message.Message):
    __slots__ = ("sequence_id", "prompt_token_ids", "tables", "sampling", "adapter_id", "state_slot_id", "input_embeddings", "prompt_top_logprobs")
    SEQUENCE_ID_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    TABLES_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_ID_FIELD_NUMBER: _ClassVar[int]
    STATE_SLOT_ID_FIELD_NUMBER: _ClassVar[int]
    INPUT_EMBEDDINGS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOP_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    sequence_id: int
    prompt_token_ids: _containers.RepeatedScalarFieldContainer[int]
    tables: _containers.RepeatedCompositeFieldContainer[_block_pb2.BlockTable]
    sampling: _sampling_pb2.SamplingParams
    adapter_id: str
    state_slot_id: int
    input_embeddings: _tensor_pb2.Tensor
    prompt_top_logprobs: int
    def __init__(self, sequence_id: _Optional[int] = ..., prompt_token_ids: _Optional[_Iterable[int]] = ..., tables: _Optional[_Iterable[_Union[_block_pb2.BlockTable, _Mapping]]] = ..., sampling: _Optional[_Union[_sampling_pb2.SamplingParams, _Mapping]] = ..., adapter_id: _Optional[str] = ..., state_slot_id: _Optional[int] = ..., input_embeddings: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., prompt_top_logprobs: _Optional[int] = ...) -> None: ...

class RegisteredTokens(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ExplicitTokens(_message.Message):
    __slots__ = ("token_ids",)
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, token_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class LastSampledToken(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class AppendBlocks(_message.Message):
    __slots__ = ("tables",)
    TABLES_FIELD_NUMBER: _ClassVar[int]
    tables: _containers.RepeatedCompositeFieldContainer[_block_pb2.BlockTable]
    def __init__(self, tables: _Optional[_Iterable[_Union[_block_pb2.BlockTable, _Mapping]]] = ...) -> None: ...

class ReplaceTables(_message.Message):
    __slots__ = ("tables",)
    TABLES_FIELD_NUMBER: _ClassVar[int]
    tables: _containers.RepeatedCompositeFieldContainer[_block_pb2.BlockTable]
    def __init__(self, tables: _Optional[_Iterable[_Union[_block_pb2.BlockTable, _Mapping]]] = ...) -> None: ...

class LeadingHoles(_message.Message):
    __slots__ = ("group", "count")
    GROUP_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    group: int
    count: int
    def __init__(self, group: _Optional[int] = ..., count: _Optional[int] = ...) -> None: ...
