from . import block_pb2 as _block_pb2
from . import error_pb2 as _error_pb2
from . import sampling_pb2 as _sampling_pb2
from . import sequence_pb2 as _sequence_pb2
from . import session_pb2 as _session_pb2
from . import tensor_pb2 as _tensor_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class StepRequest(_message.Message):
    __slots__ = ("session", "step_number", "release_sequence_ids", "block_copies", "new_sequences", "decode_sequence_ids", "items", "defer_sampling", "masks")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    STEP_NUMBER_FIELD_NUMBER: _ClassVar[int]
    RELEASE_SEQUENCE_IDS_FIELD_NUMBER: _ClassVar[int]
    BLOCK_COPIES_FIELD_NUMBER: _ClassVar[int]
    NEW_SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    DECODE_SEQUENCE_IDS_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    DEFER_SAMPLING_FIELD_NUMBER: _ClassVar[int]
    MASKS_FIELD_NUMBER: _ClassVar[int]
    session: _session_pb2.SessionRef
    step_number: int
    release_sequence_ids: _containers.RepeatedScalarFieldContainer[int]
    block_copies: _containers.RepeatedCompositeFieldContainer[_block_pb2.BlockCopy]
    new_sequences: _containers.RepeatedCompositeFieldContainer[_sequence_pb2.NewSequence]
    decode_sequence_ids: _containers.RepeatedScalarFieldContainer[int]
    items: _containers.RepeatedCompositeFieldContainer[StepItem]
    defer_sampling: bool
    masks: _containers.RepeatedCompositeFieldContainer[TokenMask]
    def __init__(self, session: _Optional[_Union[_session_pb2.SessionRef, _Mapping]] = ..., step_number: _Optional[int] = ..., release_sequence_ids: _Optional[_Iterable[int]] = ..., block_copies: _Optional[_Iterable[_Union[_block_pb2.BlockCopy, _Mapping]]] = ..., new_sequences: _Optional[_Iterable[_Union[_sequence_pb2.NewSequence, _Mapping]]] = ..., decode_sequence_ids: _Optional[_Iterable[int]] = ..., items: _Optional[_Iterable[_Union[StepItem, _Mapping]]] = ..., defer_sampling: bool = ..., masks: _Optional[_Iterable[_Union[TokenMask, _Mapping]]] = ...) -> None: ...

class StepItem(_message.Message):
    __slots__ = ("sequence_id", "start_position", "row_count", "registered", "explicit", "last_sampled", "append", "replace", "leading_holes", "sample", "return_logits", "draft_token_ids", "return_hidden_state")
    SEQUENCE_ID_FIELD_NUMBER: _ClassVar[int]
    START_POSITION_FIELD_NUMBER: _ClassVar[int]
    ROW_COUNT_FIELD_NUMBER: _ClassVar[int]
    REGISTERED_FIELD_NUMBER: _ClassVar[int]
    EXPLICIT_FIELD_NUMBER: _ClassVar[int]
    LAST_SAMPLED_FIELD_NUMBER: _ClassVar[int]
    APPEND_FIELD_NUMBER: _ClassVar[int]
    REPLACE_FIELD_NUMBER: _ClassVar[int]
    LEADING_HOLES_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_FIELD_NUMBER: _ClassVar[int]
    RETURN_LOGITS_FIELD_NUMBER: _ClassVar[int]
    DRAFT_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    RETURN_HIDDEN_STATE_FIELD_NUMBER: _ClassVar[int]
    sequence_id: int
    start_position: int
    row_count: int
    registered: _sequence_pb2.RegisteredTokens
    explicit: _sequence_pb2.ExplicitTokens
    last_sampled: _sequence_pb2.LastSampledToken
    append: _sequence_pb2.AppendBlocks
    replace: _sequence_pb2.ReplaceTables
    leading_holes: _containers.RepeatedCompositeFieldContainer[_sequence_pb2.LeadingHoles]
    sample: bool
    return_logits: bool
    draft_token_ids: _containers.RepeatedScalarFieldContainer[int]
    return_hidden_state: bool
    def __init__(self, sequence_id: _Optional[int] = ..., start_position: _Optional[int] = ..., row_count: _Optional[int] = ..., registered: _Optional[_Union[_sequence_pb2.RegisteredTokens, _Mapping]] = ..., explicit: _Optional[_Union[_sequence_pb2.ExplicitTokens, _Mapping]] = ..., last_sampled: _Optional[_Union[_sequence_pb2.LastSampledToken, _Mapping]] = ..., append: _Optional[_Union[_sequence_pb2.AppendBlocks, _Mapping]] = ..., replace: _Optional[_Union[_sequence_pb2.ReplaceTables, _Mapping]] = ..., leading_holes: _Optional[_Iterable[_Union[_sequence_pb2.LeadingHoles, _Mapping]]] = ..., sample: bool = ..., return_logits: bool = ..., draft_token_ids: _Optional[_Iterable[int]] = ..., return_hidden_state: bool = ...) -> None: ...

class StepResponse(_message.Message):
    __slots__ = ("step_number", "replayed", "token_ids", "logprobs", "results", "timings", "free_blocks", "bucket_row_count", "error")
    STEP_NUMBER_FIELD_NUMBER: _ClassVar[int]
    REPLAYED_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    FREE_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    BUCKET_ROW_COUNT_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    step_number: int
    replayed: bool
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    logprobs: _containers.RepeatedScalarFieldContainer[float]
    results: _containers.RepeatedCompositeFieldContainer[SequenceResult]
    timings: StepTimings
    free_blocks: _containers.RepeatedCompositeFieldContainer[_block_pb2.BlockCount]
    bucket_row_count: int
    error: _error_pb2.Error
    def __init__(self, step_number: _Optional[int] = ..., replayed: bool = ..., token_ids: _Optional[_Iterable[int]] = ..., logprobs: _Optional[_Iterable[float]] = ..., results: _Optional[_Iterable[_Union[SequenceResult, _Mapping]]] = ..., timings: _Optional[_Union[StepTimings, _Mapping]] = ..., free_blocks: _Optional[_Iterable[_Union[_block_pb2.BlockCount, _Mapping]]] = ..., bucket_row_count: _Optional[int] = ..., error: _Optional[_Union[_error_pb2.Error, _Mapping]] = ...) -> None: ...

class SequenceResult(_message.Message):
    __slots__ = ("sequence_id", "position", "token_ids", "logprobs", "top_logprobs", "logits", "error", "accepted_draft_count", "hidden_state", "prompt_logprobs")
    SEQUENCE_ID_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    TOP_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    LOGITS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_DRAFT_COUNT_FIELD_NUMBER: _ClassVar[int]
    HIDDEN_STATE_FIELD_NUMBER: _ClassVar[int]
    PROMPT_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    sequence_id: int
    position: int
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    logprobs: _containers.RepeatedScalarFieldContainer[float]
    top_logprobs: _containers.RepeatedCompositeFieldContainer[_sampling_pb2.TopLogprobs]
    logits: _tensor_pb2.Tensor
    error: _error_pb2.Error
    accepted_draft_count: int
    hidden_state: _tensor_pb2.Tensor
    prompt_logprobs: PromptLogprobs
    def __init__(self, sequence_id: _Optional[int] = ..., position: _Optional[int] = ..., token_ids: _Optional[_Iterable[int]] = ..., logprobs: _Optional[_Iterable[float]] = ..., top_logprobs: _Optional[_Iterable[_Union[_sampling_pb2.TopLogprobs, _Mapping]]] = ..., logits: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., error: _Optional[_Union[_error_pb2.Error, _Mapping]] = ..., accepted_draft_count: _Optional[int] = ..., hidden_state: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., prompt_logprobs: _Optional[_Union[PromptLogprobs, _Mapping]] = ...) -> None: ...

class StepTimings(_message.Message):
    __slots__ = ("queue_us", "build_us", "device_us", "sample_us")
    QUEUE_US_FIELD_NUMBER: _ClassVar[int]
    BUILD_US_FIELD_NUMBER: _ClassVar[int]
    DEVICE_US_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_US_FIELD_NUMBER: _ClassVar[int]
    queue_us: int
    build_us: int
    device_us: int
    sample_us: int
    def __init__(self, queue_us: _Optional[int] = ..., build_us: _Optional[int] = ..., device_us: _Optional[int] = ..., sample_us: _Optional[int] = ...) -> None: ...

class DeferredSampling(_message.Message):
    __slots__ = ("session", "step_number", "masks")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    STEP_NUMBER_FIELD_NUMBER: _ClassVar[int]
    MASKS_FIELD_NUMBER: _ClassVar[int]
    session: _session_pb2.SessionRef
    step_number: int
    masks: _containers.RepeatedCompositeFieldContainer[TokenMask]
    def __init__(self, session: _Optional[_Union[_session_pb2.SessionRef, _Mapping]] = ..., step_number: _Optional[int] = ..., masks: _Optional[_Iterable[_Union[TokenMask, _Mapping]]] = ...) -> None: ...

class TokenMask(_message.Message):
    __slots__ = ("sequence_id", "allowed")
    SEQUENCE_ID_FIELD_NUMBER: _ClassVar[int]
    ALLOWED_FIELD_NUMBER: _ClassVar[int]
    sequence_id: int
    allowed: _tensor_pb2.Tensor
    def __init__(self, sequence_id: _Optional[int] = ..., allowed: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ...) -> None: ...

class PromptLogprobs(_message.Message):
    __slots__ = ("first_position", "logprobs", "ranks", "top_count", "top_token_ids", "top_logprobs")
    FIRST_POSITION_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    RANKS_FIELD_NUMBER: _ClassVar[int]
    TOP_COUNT_FIELD_NUMBER: _ClassVar[int]
    TOP_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    TOP_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    first_position: int
    logprobs: _containers.RepeatedScalarFieldContainer[float]
    ranks: _containers.RepeatedScalarFieldContainer[int]
    top_count: int
    top_token_ids: _containers.RepeatedScalarFieldContainer[int]
    top_logprobs: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, first_position: _Optional[int] = ..., logprobs: _Optional[_Iterable[float]] = ..., ranks: _Optional[_Iterable[int]] = ..., top_count: _Optional[int] = ..., top_token_ids: _Optional[_Iterable[int]] = ..., top_logprobs: _Optional[_Iterable[float]] = ...) -> None: ...
