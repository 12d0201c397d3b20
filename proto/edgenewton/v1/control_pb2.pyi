from edgenewton.v1 import limits_pb2 as _limits_pb2
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class OpenSessionRequest(_message.Message):
    __slots__ = ("session", "settings_json")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_JSON_FIELD_NUMBER: _ClassVar[int]
    session: str
    settings_json: str
    def __init__(self, session: _Optional[str] = ..., settings_json: _Optional[str] = ...) -> None: ...

class OpenSessionReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class KeepSessionRequest(_message.Message):
    __slots__ = ("session",)
    SESSION_FIELD_NUMBER: _ClassVar[int]
    session: str
    def __init__(self, session: _Optional[str] = ...) -> None: ...

class KeepSessionReply(_message.Message):
    __slots__ = ("is_over", "reason")
    IS_OVER_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    is_over: bool
    reason: str
    def __init__(self, is_over: _Optional[bool] = ..., reason: _Optional[str] = ...) -> None: ...

class AbortSessionRequest(_message.Message):
    __slots__ = ("session", "reason")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    session: str
    reason: str
    def __init__(self, session: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class AbortSessionReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
