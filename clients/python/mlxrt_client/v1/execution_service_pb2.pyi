from . import execution_pb2 as _execution_pb2
from . import step_pb2 as _step_pb2
from google.protobuf import descriptor as _descriptor
from typing import ClassVar as _ClassVar

DESCRIPTOR: _descriptor.FileDescriptor
