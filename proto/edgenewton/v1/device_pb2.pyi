from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DeviceData(_message.Message):
    __slots__ = ("settings_json", "index", "count")
    SETTINGS_JSON_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    settings_json: str
    index: int
    count: int
    def __init__(self, settings_json: _Optional[str] = ..., index: _Optional[int] = ..., count: _Optional[int] = ...) -> None: ...

class TrainRequest(_message.Message):
    __slots__ = ("data", "first_step", "coordinator", "session", "device", "steps", "weights")
    DATA_FIELD_NUMBER: _ClassVar[int]
    FIRST_STEP_FIELD_NUMBER: _ClassVar[int]
    COORDINATOR_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    data: DeviceData
    first_step: int
    coordinator: str
    session: str
    device: str
    steps: int
    weights: bytes
    def __init__(self, data: _Optional[_Union[DeviceData, _Mapping]] = ..., first_step: _Optional[int] = ..., coordinator: _Optional[str] = ..., session: _Optional[str] = ..., device: _Optional[str] = ..., steps: _Optional[int] = ..., weights: _Optional[bytes] = ...) -> None: ...

class TrainEvent(_message.Message):
    __slots__ = ("progress", "result")
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    progress: TrainProgress
    result: TrainResult
    def __init__(self, progress: _Optional[_Union[TrainProgress, _Mapping]] = ..., result: _Optional[_Union[TrainResult, _Mapping]] = ...) -> None: ...

class TrainProgress(_message.Message):
    __slots__ = ("step", "loss", "session_loss", "devices", "epsilon")
    STEP_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    SESSION_LOSS_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    EPSILON_FIELD_NUMBER: _ClassVar[int]
    step: int
    loss: float
    session_loss: float
    devices: int
    epsilon: float
    def __init__(self, step: _Optional[int] = ..., loss: _Optional[float] = ..., session_loss: _Optional[float] = ..., devices: _Optional[int] = ..., epsilon: _Optional[float] = ...) -> None: ...

class TrainResult(_message.Message):
    __slots__ = ("report_json", "weights", "not_promoted")
    REPORT_JSON_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    NOT_PROMOTED_FIELD_NUMBER: _ClassVar[int]
    report_json: str
    weights: bytes
    not_promoted: str
    def __init__(self, report_json: _Optional[str] = ..., weights: _Optional[bytes] = ..., not_promoted: _Optional[str] = ...) -> None: ...

class EvaluateRequest(_message.Message):
    __slots__ = ("data", "weights")
    DATA_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    data: DeviceData
    weights: bytes
    def __init__(self, data: _Optional[_Union[DeviceData, _Mapping]] = ..., weights: _Optional[bytes] = ...) -> None: ...

class EvaluateReply(_message.Message):
    __slots__ = ("correct", "samples", "loss")
    CORRECT_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    correct: int
    samples: int
    loss: float
    def __init__(self, correct: _Optional[int] = ..., samples: _Optional[int] = ..., loss: _Optional[float] = ...) -> None: ...

class InitialWeightsRequest(_message.Message):
    __slots__ = ("settings_json",)
    SETTINGS_JSON_FIELD_NUMBER: _ClassVar[int]
    settings_json: str
    def __init__(self, settings_json: _Optional[str] = ...) -> None: ...

class InitialWeightsReply(_message.Message):
    __slots__ = ("weights",)
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    weights: bytes
    def __init__(self, weights: _Optional[bytes] = ...) -> None: ...

class PromoteRequest(_message.Message):
    __slots__ = ("artefact",)
    ARTEFACT_FIELD_NUMBER: _ClassVar[int]
    artefact: bytes
    def __init__(self, artefact: _Optional[bytes] = ...) -> None: ...

class PromoteReply(_message.Message):
    __slots__ = ("version",)
    VERSION_FIELD_NUMBER: _ClassVar[int]
    version: int
    def __init__(self, version: _Optional[int] = ...) -> None: ...

class StatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatusReply(_message.Message):
    __slots__ = ("software", "pid", "uptime_s", "grpc_address", "rest_address", "model", "training", "waiting_samples")
    SOFTWARE_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    UPTIME_S_FIELD_NUMBER: _ClassVar[int]
    GRPC_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    REST_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TRAINING_FIELD_NUMBER: _ClassVar[int]
    WAITING_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    software: str
    pid: int
    uptime_s: float
    grpc_address: str
    rest_address: str
    model: ModelStatus
    training: TrainingStatus
    waiting_samples: int
    def __init__(self, software: _Optional[str] = ..., pid: _Optional[int] = ..., uptime_s: _Optional[float] = ..., grpc_address: _Optional[str] = ..., rest_address: _Optional[str] = ..., model: _Optional[_Union[ModelStatus, _Mapping]] = ..., training: _Optional[_Union[TrainingStatus, _Mapping]] = ..., waiting_samples: _Optional[int] = ...) -> None: ...

class ModelStatus(_message.Message):
    __slots__ = ("name", "version", "task", "step", "digest", "engine", "accuracy", "versions")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    ACCURACY_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: int
    task: str
    step: int
    digest: str
    engine: str
    accuracy: float
    versions: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, name: _Optional[str] = ..., version: _Optional[int] = ..., task: _Optional[str] = ..., step: _Optional[int] = ..., digest: _Optional[str] = ..., engine: _Optional[str] = ..., accuracy: _Optional[float] = ..., versions: _Optional[_Iterable[int]] = ...) -> None: ...

class TrainingStatus(_message.Message):
    __slots__ = ("is_training", "session", "step", "loss", "last", "epsilon")
    IS_TRAINING_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    EPSILON_FIELD_NUMBER: _ClassVar[int]
    is_training: bool
    session: str
    step: int
    loss: float
    last: str
    epsilon: float
    def __init__(self, is_training: _Optional[bool] = ..., session: _Optional[str] = ..., step: _Optional[int] = ..., loss: _Optional[float] = ..., last: _Optional[str] = ..., epsilon: _Optional[float] = ...) -> None: ...
