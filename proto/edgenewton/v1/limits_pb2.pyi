from google.protobuf import descriptor_pb2 as _descriptor_pb2
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor
LIMIT_FIELD_NUMBER: _ClassVar[int]
limit: _descriptor.FieldDescriptor
SIZE_FIELD_NUMBER: _ClassVar[int]
size: _descriptor.FieldDescriptor

class Limit(_message.Message):
    __slots__ = ("min", "max", "any", "bytes", "count", "key_bytes", "cut", "never")
    MIN_FIELD_NUMBER: _ClassVar[int]
    MAX_FIELD_NUMBER: _ClassVar[int]
    ANY_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    KEY_BYTES_FIELD_NUMBER: _ClassVar[int]
    CUT_FIELD_NUMBER: _ClassVar[int]
    NEVER_FIELD_NUMBER: _ClassVar[int]
    min: float
    max: float
    any: bool
    bytes: int
    count: int
    key_bytes: int
    cut: int
    never: bool
    def __init__(self, min: _Optional[float] = ..., max: _Optional[float] = ..., any: _Optional[bool] = ..., bytes: _Optional[int] = ..., count: _Optional[int] = ..., key_bytes: _Optional[int] = ..., cut: _Optional[int] = ..., never: _Optional[bool] = ...) -> None: ...

class Size(_message.Message):
    __slots__ = ("bytes", "fields")
    BYTES_FIELD_NUMBER: _ClassVar[int]
    FIELDS_FIELD_NUMBER: _ClassVar[int]
    bytes: int
    fields: int
    def __init__(self, bytes: _Optional[int] = ..., fields: _Optional[int] = ...) -> None: ...
