from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class BlockTable(_message.Message):
    __slots__ = ("group", "block_ids")
    GROUP_FIELD_NUMBER: _ClassVar[int]
    BLOCK_IDS_FIELD_NUMBER: _ClassVar[int]
    group: int
    block_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, group: _Optional[int] = ..., block_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class BlockCount(_message.Message):
    __slots__ = ("group", "count")
    GROUP_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    group: int
    count: int
    def __init__(self, group: _Optional[int] = ..., count: _Optional[int] = ...) -> None: ...

class BlockCopy(_message.Message):
    __slots__ = ("group", "source_block_id", "destination_block_id")
    GROUP_FIELD_NUMBER: _ClassVar[int]
    SOURCE_BLOCK_ID_FIELD_NUMBER: _ClassVar[int]
    DESTINATION_BLOCK_ID_FIELD_NUMBER: _ClassVar[int]
    group: int
    source_block_id: int
    destination_block_id: int
    def __init__(self, group: _Optional[int] = ..., source_block_id: _Optional[int] = ..., destination_block_id: _Optional[int] = ...) -> None: ...
