from . import tensor_pb2 as _tensor_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ServerState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SERVER_STATE_UNSPECIFIED: _ClassVar[ServerState]
    SERVER_STATE_LOADING: _ClassVar[ServerState]
    SERVER_STATE_SERVING: _ClassVar[ServerState]
    SERVER_STATE_DRAINING: _ClassVar[ServerState]
    SERVER_STATE_FAILED: _ClassVar[ServerState]

class GroupKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    GROUP_KIND_UNSPECIFIED: _ClassVar[GroupKind]
    GROUP_KIND_FULL: _ClassVar[GroupKind]
    GROUP_KIND_WINDOW: _ClassVar[GroupKind]
    GROUP_KIND_STATE: _ClassVar[GroupKind]
SERVER_STATE_UNSPECIFIED: ServerState
SERVER_STATE_LOADING: ServerState
SERVER_STATE_SERVING: ServerState
SERVER_STATE_DRAINING: ServerState
SERVER_STATE_FAILED: ServerState
GROUP_KIND_UNSPECIFIED: GroupKind
GROUP_KIND_FULL: GroupKind
GROUP_KIND_WINDOW: GroupKind
GROUP_KIND_STATE: GroupKind

class GetServerInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetServerInfoResponse(_message.Message):
    __slots__ = ("version", "mlx_version", "instance_id", "device", "attention_path", "blas", "state", "limits", "features")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    MLX_VERSION_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_ID_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    ATTENTION_PATH_FIELD_NUMBER: _ClassVar[int]
    BLAS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    version: str
    mlx_version: str
    instance_id: str
    device: str
    attention_path: str
    blas: str
    state: ServerState
    limits: Limits
    features: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, version: _Optional[str] = ..., mlx_version: _Optional[str] = ..., instance_id: _Optional[str] = ..., device: _Optional[str] = ..., attention_path: _Optional[str] = ..., blas: _Optional[str] = ..., state: _Optional[_Union[ServerState, str]] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., features: _Optional[_Iterable[str]] = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("max_inflight_steps", "max_step_rows", "max_step_sequences", "max_step_copies", "max_logits_rows", "max_sequences", "max_model_length", "max_sessions", "max_message_bytes", "max_logit_bias", "max_top_logprobs", "min_lease_ttl_ms", "max_lease_ttl_ms", "default_lease_ttl_ms", "stored_replies", "max_step_drafts", "max_mask_rows", "max_prompt_logprobs_rows")
    MAX_INFLIGHT_STEPS_FIELD_NUMBER: _ClassVar[int]
    MAX_STEP_ROWS_FIELD_NUMBER: _ClassVar[int]
    MAX_STEP_SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    MAX_STEP_COPIES_FIELD_NUMBER: _ClassVar[int]
    MAX_LOGITS_ROWS_FIELD_NUMBER: _ClassVar[int]
    MAX_SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    MAX_MODEL_LENGTH_FIELD_NUMBER: _ClassVar[int]
    MAX_SESSIONS_FIELD_NUMBER: _ClassVar[int]
    MAX_MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_LOGIT_BIAS_FIELD_NUMBER: _ClassVar[int]
    MAX_TOP_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    MIN_LEASE_TTL_MS_FIELD_NUMBER: _ClassVar[int]
    MAX_LEASE_TTL_MS_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_LEASE_TTL_MS_FIELD_NUMBER: _ClassVar[int]
    STORED_REPLIES_FIELD_NUMBER: _ClassVar[int]
    MAX_STEP_DRAFTS_FIELD_NUMBER: _ClassVar[int]
    MAX_MASK_ROWS_FIELD_NUMBER: _ClassVar[int]
    MAX_PROMPT_LOGPROBS_ROWS_FIELD_NUMBER: _ClassVar[int]
    max_inflight_steps: int
    max_step_rows: int
    max_step_sequences: int
    max_step_copies: int
    max_logits_rows: int
    max_sequences: int
    max_model_length: int
    max_sessions: int
    max_message_bytes: int
    max_logit_bias: int
    max_top_logprobs: int
    min_lease_ttl_ms: int
    max_lease_ttl_ms: int
    default_lease_ttl_ms: int
    stored_replies: int
    max_step_drafts: int
    max_mask_rows: int
    max_prompt_logprobs_rows: int
    def __init__(self, max_inflight_steps: _Optional[int] = ..., max_step_rows: _Optional[int] = ..., max_step_sequences: _Optional[int] = ..., max_step_copies: _Optional[int] = ..., max_logits_rows: _Optional[int] = ..., max_sequences: _Optional[int] = ..., max_model_length: _Optional[int] = ..., max_sessions: _Optional[int] = ..., max_message_bytes: _Optional[int] = ..., max_logit_bias: _Optional[int] = ..., max_top_logprobs: _Optional[int] = ..., min_lease_ttl_ms: _Optional[int] = ..., max_lease_ttl_ms: _Optional[int] = ..., default_lease_ttl_ms: _Optional[int] = ..., stored_replies: _Optional[int] = ..., max_step_drafts: _Optional[int] = ..., max_mask_rows: _Optional[int] = ..., max_prompt_logprobs_rows: _Optional[int] = ...) -> None: ...

class GetModelInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetModelInfoResponse(_message.Message):
    __slots__ = ("model_name", "model_type", "vocabulary_size", "max_model_length", "kv_data_type", "block_size", "groups", "end_token_ids", "fingerprint", "begin_token_ids")
    MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    MODEL_TYPE_FIELD_NUMBER: _ClassVar[int]
    VOCABULARY_SIZE_FIELD_NUMBER: _ClassVar[int]
    MAX_MODEL_LENGTH_FIELD_NUMBER: _ClassVar[int]
    KV_DATA_TYPE_FIELD_NUMBER: _ClassVar[int]
    BLOCK_SIZE_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    END_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    BEGIN_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    model_name: str
    model_type: str
    vocabulary_size: int
    max_model_length: int
    kv_data_type: _tensor_pb2.DataType
    block_size: int
    groups: _containers.RepeatedCompositeFieldContainer[GroupInfo]
    end_token_ids: _containers.RepeatedScalarFieldContainer[int]
    fingerprint: str
    begin_token_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, model_name: _Optional[str] = ..., model_type: _Optional[str] = ..., vocabulary_size: _Optional[int] = ..., max_model_length: _Optional[int] = ..., kv_data_type: _Optional[_Union[_tensor_pb2.DataType, str]] = ..., block_size: _Optional[int] = ..., groups: _Optional[_Iterable[_Union[GroupInfo, _Mapping]]] = ..., end_token_ids: _Optional[_Iterable[int]] = ..., fingerprint: _Optional[str] = ..., begin_token_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class GroupInfo(_message.Message):
    __slots__ = ("group", "kind", "layer_indices", "window", "block_count", "block_bytes")
    GROUP_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    LAYER_INDICES_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    BLOCK_COUNT_FIELD_NUMBER: _ClassVar[int]
    BLOCK_BYTES_FIELD_NUMBER: _ClassVar[int]
    group: int
    kind: GroupKind
    layer_indices: _containers.RepeatedScalarFieldContainer[int]
    window: int
    block_count: int
    block_bytes: int
    def __init__(self, group: _Optional[int] = ..., kind: _Optional[_Union[GroupKind, str]] = ..., layer_indices: _Optional[_Iterable[int]] = ..., window: _Optional[int] = ..., block_count: _Optional[int] = ..., block_bytes: _Optional[int] = ...) -> None: ...

class GetTokenizerRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetTokenizerResponse(_message.Message):
    __slots__ = ("file_name", "chunk", "file_sha256")
    FILE_NAME_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    FILE_SHA256_FIELD_NUMBER: _ClassVar[int]
    file_name: str
    chunk: bytes
    file_sha256: str
    def __init__(self, file_name: _Optional[str] = ..., chunk: _Optional[bytes] = ..., file_sha256: _Optional[str] = ...) -> None: ...

class LoadAdapterRequest(_message.Message):
    __slots__ = ("adapter_id", "path")
    ADAPTER_ID_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    adapter_id: str
    path: str
    def __init__(self, adapter_id: _Optional[str] = ..., path: _Optional[str] = ...) -> None: ...

class LoadAdapterResponse(_message.Message):
    __slots__ = ("adapter_ids",)
    ADAPTER_IDS_FIELD_NUMBER: _ClassVar[int]
    adapter_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, adapter_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class UnloadAdapterRequest(_message.Message):
    __slots__ = ("adapter_id",)
    ADAPTER_ID_FIELD_NUMBER: _ClassVar[int]
    adapter_id: str
    def __init__(self, adapter_id: _Optional[str] = ...) -> None: ...

class UnloadAdapterResponse(_message.Message):
    __slots__ = ("adapter_ids",)
    ADAPTER_IDS_FIELD_NUMBER: _ClassVar[int]
    adapter_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, adapter_ids: _Optional[_Iterable[str]] = ...) -> None: ...
