from edgenewton.v1 import limits_pb2 as _limits_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DTYPE_UNSPECIFIED: _ClassVar[DType]
    DTYPE_FLOAT32: _ClassVar[DType]
    DTYPE_FLOAT64: _ClassVar[DType]
    DTYPE_FLOAT16: _ClassVar[DType]
    DTYPE_BFLOAT16: _ClassVar[DType]

class Codec(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CODEC_UNSPECIFIED: _ClassVar[Codec]
    CODEC_FP32: _ClassVar[Codec]
    CODEC_FP16: _ClassVar[Codec]
    CODEC_BF16: _ClassVar[Codec]
    CODEC_INT8: _ClassVar[Codec]
    CODEC_POWERSGD: _ClassVar[Codec]
    CODEC_TOPK: _ClassVar[Codec]
    CODEC_INT4: _ClassVar[Codec]
    CODEC_TERNARY: _ClassVar[Codec]
    CODEC_SIGN: _ClassVar[Codec]
    CODEC_SPARSE_INT4: _ClassVar[Codec]
    CODEC_SPARSE_TERNARY: _ClassVar[Codec]
    CODEC_SPARSE_SIGN: _ClassVar[Codec]
    CODEC_AUTO: _ClassVar[Codec]
    CODEC_MASKED: _ClassVar[Codec]

class TensorKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TENSOR_KIND_UNSPECIFIED: _ClassVar[TensorKind]
    TENSOR_KIND_GRADIENT: _ClassVar[TensorKind]
    TENSOR_KIND_PARAMETER: _ClassVar[TensorKind]
    TENSOR_KIND_CURVATURE: _ClassVar[TensorKind]
    TENSOR_KIND_DELTA: _ClassVar[TensorKind]
    TENSOR_KIND_NOISED: _ClassVar[TensorKind]
    TENSOR_KIND_WEIGHT: _ClassVar[TensorKind]

class TensorStructure(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TENSOR_STRUCTURE_UNSPECIFIED: _ClassVar[TensorStructure]
    TENSOR_STRUCTURE_TRIANGLES: _ClassVar[TensorStructure]
    TENSOR_STRUCTURE_DIAGONALS: _ClassVar[TensorStructure]

class SnapshotAction(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SNAPSHOT_ACTION_UNSPECIFIED: _ClassVar[SnapshotAction]
    SNAPSHOT_ACTION_NONE: _ClassVar[SnapshotAction]
    SNAPSHOT_ACTION_DOWNLOAD: _ClassVar[SnapshotAction]

class Phase(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PHASE_UNSPECIFIED: _ClassVar[Phase]
    PHASE_GATHERING: _ClassVar[Phase]
    PHASE_TRAINING: _ClassVar[Phase]
    PHASE_ENDED: _ClassVar[Phase]
    PHASE_ABORTED: _ClassVar[Phase]
DTYPE_UNSPECIFIED: DType
DTYPE_FLOAT32: DType
DTYPE_FLOAT64: DType
DTYPE_FLOAT16: DType
DTYPE_BFLOAT16: DType
CODEC_UNSPECIFIED: Codec
CODEC_FP32: Codec
CODEC_FP16: Codec
CODEC_BF16: Codec
CODEC_INT8: Codec
CODEC_POWERSGD: Codec
CODEC_TOPK: Codec
CODEC_INT4: Codec
CODEC_TERNARY: Codec
CODEC_SIGN: Codec
CODEC_SPARSE_INT4: Codec
CODEC_SPARSE_TERNARY: Codec
CODEC_SPARSE_SIGN: Codec
CODEC_AUTO: Codec
CODEC_MASKED: Codec
TENSOR_KIND_UNSPECIFIED: TensorKind
TENSOR_KIND_GRADIENT: TensorKind
TENSOR_KIND_PARAMETER: TensorKind
TENSOR_KIND_CURVATURE: TensorKind
TENSOR_KIND_DELTA: TensorKind
TENSOR_KIND_NOISED: TensorKind
TENSOR_KIND_WEIGHT: TensorKind
TENSOR_STRUCTURE_UNSPECIFIED: TensorStructure
TENSOR_STRUCTURE_TRIANGLES: TensorStructure
TENSOR_STRUCTURE_DIAGONALS: TensorStructure
SNAPSHOT_ACTION_UNSPECIFIED: SnapshotAction
SNAPSHOT_ACTION_NONE: SnapshotAction
SNAPSHOT_ACTION_DOWNLOAD: SnapshotAction
PHASE_UNSPECIFIED: Phase
PHASE_GATHERING: Phase
PHASE_TRAINING: Phase
PHASE_ENDED: Phase
PHASE_ABORTED: Phase

class TensorSpec(_message.Message):
    __slots__ = ("name", "shape", "dtype", "kind", "parts", "structure")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    STRUCTURE_FIELD_NUMBER: _ClassVar[int]
    name: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    dtype: DType
    kind: TensorKind
    parts: _containers.RepeatedCompositeFieldContainer[TensorSpec]
    structure: TensorStructure
    def __init__(self, name: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., dtype: _Optional[_Union[DType, str]] = ..., kind: _Optional[_Union[TensorKind, str]] = ..., parts: _Optional[_Iterable[_Union[TensorSpec, _Mapping]]] = ..., structure: _Optional[_Union[TensorStructure, str]] = ...) -> None: ...

class JoinRequest(_message.Message):
    __slots__ = ("protocol_version", "session", "device", "tensors", "training_samples", "options", "weights_digest", "software", "codecs", "next_step", "token", "sketch", "channel_key", "run_steps", "frozen_sketch")
    class OptionsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    TRAINING_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_DIGEST_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_FIELD_NUMBER: _ClassVar[int]
    CODECS_FIELD_NUMBER: _ClassVar[int]
    NEXT_STEP_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    SKETCH_FIELD_NUMBER: _ClassVar[int]
    CHANNEL_KEY_FIELD_NUMBER: _ClassVar[int]
    RUN_STEPS_FIELD_NUMBER: _ClassVar[int]
    FROZEN_SKETCH_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    session: str
    device: str
    tensors: _containers.RepeatedCompositeFieldContainer[TensorSpec]
    training_samples: int
    options: _containers.ScalarMap[str, str]
    weights_digest: bytes
    software: str
    codecs: _containers.RepeatedScalarFieldContainer[Codec]
    next_step: int
    token: str
    sketch: Sketch
    channel_key: ChannelKey
    run_steps: int
    frozen_sketch: Sketch
    def __init__(self, protocol_version: _Optional[int] = ..., session: _Optional[str] = ..., device: _Optional[str] = ..., tensors: _Optional[_Iterable[_Union[TensorSpec, _Mapping]]] = ..., training_samples: _Optional[int] = ..., options: _Optional[_Mapping[str, str]] = ..., weights_digest: _Optional[bytes] = ..., software: _Optional[str] = ..., codecs: _Optional[_Iterable[_Union[Codec, str]]] = ..., next_step: _Optional[int] = ..., token: _Optional[str] = ..., sketch: _Optional[_Union[Sketch, _Mapping]] = ..., channel_key: _Optional[_Union[ChannelKey, _Mapping]] = ..., run_steps: _Optional[int] = ..., frozen_sketch: _Optional[_Union[Sketch, _Mapping]] = ...) -> None: ...

class JoinReply(_message.Message):
    __slots__ = ("protocol_version", "first_step", "settings", "token", "snapshot", "batches", "form")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    FIRST_STEP_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    BATCHES_FIELD_NUMBER: _ClassVar[int]
    FORM_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    first_step: int
    settings: ExchangeSettings
    token: str
    snapshot: SnapshotAction
    batches: int
    form: Codec
    def __init__(self, protocol_version: _Optional[int] = ..., first_step: _Optional[int] = ..., settings: _Optional[_Union[ExchangeSettings, _Mapping]] = ..., token: _Optional[str] = ..., snapshot: _Optional[_Union[SnapshotAction, str]] = ..., batches: _Optional[int] = ..., form: _Optional[_Union[Codec, str]] = ...) -> None: ...

class ExchangeSettings(_message.Message):
    __slots__ = ("codec", "frame_bytes", "devices", "quorum", "step_deadline_s", "join_deadline_s", "powersgd_rank", "topk_fraction", "heartbeat_s", "lease_s", "rejoin_deadline_s", "digest_every", "secure_aggregation")
    CODEC_FIELD_NUMBER: _ClassVar[int]
    FRAME_BYTES_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    QUORUM_FIELD_NUMBER: _ClassVar[int]
    STEP_DEADLINE_S_FIELD_NUMBER: _ClassVar[int]
    JOIN_DEADLINE_S_FIELD_NUMBER: _ClassVar[int]
    POWERSGD_RANK_FIELD_NUMBER: _ClassVar[int]
    TOPK_FRACTION_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_S_FIELD_NUMBER: _ClassVar[int]
    LEASE_S_FIELD_NUMBER: _ClassVar[int]
    REJOIN_DEADLINE_S_FIELD_NUMBER: _ClassVar[int]
    DIGEST_EVERY_FIELD_NUMBER: _ClassVar[int]
    SECURE_AGGREGATION_FIELD_NUMBER: _ClassVar[int]
    codec: Codec
    frame_bytes: int
    devices: int
    quorum: int
    step_deadline_s: float
    join_deadline_s: float
    powersgd_rank: int
    topk_fraction: float
    heartbeat_s: float
    lease_s: float
    rejoin_deadline_s: float
    digest_every: int
    secure_aggregation: SecureAggregation
    def __init__(self, codec: _Optional[_Union[Codec, str]] = ..., frame_bytes: _Optional[int] = ..., devices: _Optional[int] = ..., quorum: _Optional[int] = ..., step_deadline_s: _Optional[float] = ..., join_deadline_s: _Optional[float] = ..., powersgd_rank: _Optional[int] = ..., topk_fraction: _Optional[float] = ..., heartbeat_s: _Optional[float] = ..., lease_s: _Optional[float] = ..., rejoin_deadline_s: _Optional[float] = ..., digest_every: _Optional[int] = ..., secure_aggregation: _Optional[_Union[SecureAggregation, _Mapping]] = ...) -> None: ...

class SecureAggregation(_message.Message):
    __slots__ = ("bits", "least")
    BITS_FIELD_NUMBER: _ClassVar[int]
    LEAST_FIELD_NUMBER: _ClassVar[int]
    bits: int
    least: int
    def __init__(self, bits: _Optional[int] = ..., least: _Optional[int] = ...) -> None: ...

class ChannelKey(_message.Message):
    __slots__ = ("device", "public", "certificates", "signature")
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    PUBLIC_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATES_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    device: str
    public: bytes
    certificates: _containers.RepeatedScalarFieldContainer[bytes]
    signature: bytes
    def __init__(self, device: _Optional[str] = ..., public: _Optional[bytes] = ..., certificates: _Optional[_Iterable[bytes]] = ..., signature: _Optional[bytes] = ...) -> None: ...

class KeysWanted(_message.Message):
    __slots__ = ("circle", "channel_keys", "attempt")
    CIRCLE_FIELD_NUMBER: _ClassVar[int]
    CHANNEL_KEYS_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    circle: _containers.RepeatedScalarFieldContainer[str]
    channel_keys: _containers.RepeatedCompositeFieldContainer[ChannelKey]
    attempt: int
    def __init__(self, circle: _Optional[_Iterable[str]] = ..., channel_keys: _Optional[_Iterable[_Union[ChannelKey, _Mapping]]] = ..., attempt: _Optional[int] = ...) -> None: ...

class StepKeys(_message.Message):
    __slots__ = ("public", "seed_digest", "boxes", "digests", "attempt")
    PUBLIC_FIELD_NUMBER: _ClassVar[int]
    SEED_DIGEST_FIELD_NUMBER: _ClassVar[int]
    BOXES_FIELD_NUMBER: _ClassVar[int]
    DIGESTS_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    public: bytes
    seed_digest: bytes
    boxes: bytes
    digests: bytes
    attempt: int
    def __init__(self, public: _Optional[bytes] = ..., seed_digest: _Optional[bytes] = ..., boxes: _Optional[bytes] = ..., digests: _Optional[bytes] = ..., attempt: _Optional[int] = ...) -> None: ...

class Maskers(_message.Message):
    __slots__ = ("public", "maskers", "announcements", "scales")
    PUBLIC_FIELD_NUMBER: _ClassVar[int]
    MASKERS_FIELD_NUMBER: _ClassVar[int]
    ANNOUNCEMENTS_FIELD_NUMBER: _ClassVar[int]
    SCALES_FIELD_NUMBER: _ClassVar[int]
    public: bytes
    maskers: bytes
    announcements: bytes
    scales: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, public: _Optional[bytes] = ..., maskers: _Optional[bytes] = ..., announcements: _Optional[bytes] = ..., scales: _Optional[_Iterable[bytes]] = ...) -> None: ...

class Unmask(_message.Message):
    __slots__ = ("public", "contributed")
    PUBLIC_FIELD_NUMBER: _ClassVar[int]
    CONTRIBUTED_FIELD_NUMBER: _ClassVar[int]
    public: bytes
    contributed: bytes
    def __init__(self, public: _Optional[bytes] = ..., contributed: _Optional[bytes] = ...) -> None: ...

class Revealed(_message.Message):
    __slots__ = ("public", "of_keys", "of_seeds")
    PUBLIC_FIELD_NUMBER: _ClassVar[int]
    OF_KEYS_FIELD_NUMBER: _ClassVar[int]
    OF_SEEDS_FIELD_NUMBER: _ClassVar[int]
    public: bytes
    of_keys: bytes
    of_seeds: bytes
    def __init__(self, public: _Optional[bytes] = ..., of_keys: _Optional[bytes] = ..., of_seeds: _Optional[bytes] = ...) -> None: ...

class TensorSlice(_message.Message):
    __slots__ = ("tensor", "dtype", "codec", "shape", "offset", "length", "data")
    TENSOR_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    tensor: int
    dtype: DType
    codec: Codec
    shape: _containers.RepeatedScalarFieldContainer[int]
    offset: int
    length: int
    data: bytes
    def __init__(self, tensor: _Optional[int] = ..., dtype: _Optional[_Union[DType, str]] = ..., codec: _Optional[_Union[Codec, str]] = ..., shape: _Optional[_Iterable[int]] = ..., offset: _Optional[int] = ..., length: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class Frame(_message.Message):
    __slots__ = ("step", "samples", "slices", "contribution", "commit", "heartbeat", "snapshot_wanted", "heal", "skipped", "keys_wanted", "step_keys", "maskers", "unmask", "revealed", "masked_with", "next_keys", "next_step")
    STEP_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    SLICES_FIELD_NUMBER: _ClassVar[int]
    CONTRIBUTION_FIELD_NUMBER: _ClassVar[int]
    COMMIT_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_WANTED_FIELD_NUMBER: _ClassVar[int]
    HEAL_FIELD_NUMBER: _ClassVar[int]
    SKIPPED_FIELD_NUMBER: _ClassVar[int]
    KEYS_WANTED_FIELD_NUMBER: _ClassVar[int]
    STEP_KEYS_FIELD_NUMBER: _ClassVar[int]
    MASKERS_FIELD_NUMBER: _ClassVar[int]
    UNMASK_FIELD_NUMBER: _ClassVar[int]
    REVEALED_FIELD_NUMBER: _ClassVar[int]
    MASKED_WITH_FIELD_NUMBER: _ClassVar[int]
    NEXT_KEYS_FIELD_NUMBER: _ClassVar[int]
    NEXT_STEP_FIELD_NUMBER: _ClassVar[int]
    step: int
    samples: int
    slices: _containers.RepeatedCompositeFieldContainer[TensorSlice]
    contribution: Contribution
    commit: Commit
    heartbeat: Heartbeat
    snapshot_wanted: SnapshotWanted
    heal: Heal
    skipped: bool
    keys_wanted: KeysWanted
    step_keys: StepKeys
    maskers: Maskers
    unmask: Unmask
    revealed: Revealed
    masked_with: bytes
    next_keys: StepKeys
    next_step: int
    def __init__(self, step: _Optional[int] = ..., samples: _Optional[int] = ..., slices: _Optional[_Iterable[_Union[TensorSlice, _Mapping]]] = ..., contribution: _Optional[_Union[Contribution, _Mapping]] = ..., commit: _Optional[_Union[Commit, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ..., snapshot_wanted: _Optional[_Union[SnapshotWanted, _Mapping]] = ..., heal: _Optional[_Union[Heal, _Mapping]] = ..., skipped: _Optional[bool] = ..., keys_wanted: _Optional[_Union[KeysWanted, _Mapping]] = ..., step_keys: _Optional[_Union[StepKeys, _Mapping]] = ..., maskers: _Optional[_Union[Maskers, _Mapping]] = ..., unmask: _Optional[_Union[Unmask, _Mapping]] = ..., revealed: _Optional[_Union[Revealed, _Mapping]] = ..., masked_with: _Optional[bytes] = ..., next_keys: _Optional[_Union[StepKeys, _Mapping]] = ..., next_step: _Optional[int] = ...) -> None: ...

class Heartbeat(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SnapshotWanted(_message.Message):
    __slots__ = ("readers",)
    READERS_FIELD_NUMBER: _ClassVar[int]
    readers: _containers.RepeatedCompositeFieldContainer[ChannelKey]
    def __init__(self, readers: _Optional[_Iterable[_Union[ChannelKey, _Mapping]]] = ...) -> None: ...

class Heal(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class Contribution(_message.Message):
    __slots__ = ("loss", "evaluation", "hyperparameters", "batches", "pace", "sketch", "numbers", "epsilon")
    class HyperparametersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    LOSS_FIELD_NUMBER: _ClassVar[int]
    EVALUATION_FIELD_NUMBER: _ClassVar[int]
    HYPERPARAMETERS_FIELD_NUMBER: _ClassVar[int]
    BATCHES_FIELD_NUMBER: _ClassVar[int]
    PACE_FIELD_NUMBER: _ClassVar[int]
    SKETCH_FIELD_NUMBER: _ClassVar[int]
    NUMBERS_FIELD_NUMBER: _ClassVar[int]
    EPSILON_FIELD_NUMBER: _ClassVar[int]
    loss: float
    evaluation: Evaluation
    hyperparameters: _containers.ScalarMap[str, float]
    batches: int
    pace: Pace
    sketch: Sketch
    numbers: bytes
    epsilon: float
    def __init__(self, loss: _Optional[float] = ..., evaluation: _Optional[_Union[Evaluation, _Mapping]] = ..., hyperparameters: _Optional[_Mapping[str, float]] = ..., batches: _Optional[int] = ..., pace: _Optional[_Union[Pace, _Mapping]] = ..., sketch: _Optional[_Union[Sketch, _Mapping]] = ..., numbers: _Optional[bytes] = ..., epsilon: _Optional[float] = ...) -> None: ...

class Sketch(_message.Message):
    __slots__ = ("groups",)
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    groups: _containers.RepeatedCompositeFieldContainer[GroupSketch]
    def __init__(self, groups: _Optional[_Iterable[_Union[GroupSketch, _Mapping]]] = ...) -> None: ...

class GroupSketch(_message.Message):
    __slots__ = ("name", "projections", "scale", "roundoff")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PROJECTIONS_FIELD_NUMBER: _ClassVar[int]
    SCALE_FIELD_NUMBER: _ClassVar[int]
    ROUNDOFF_FIELD_NUMBER: _ClassVar[int]
    name: str
    projections: _containers.RepeatedScalarFieldContainer[float]
    scale: float
    roundoff: float
    def __init__(self, name: _Optional[str] = ..., projections: _Optional[_Iterable[float]] = ..., scale: _Optional[float] = ..., roundoff: _Optional[float] = ...) -> None: ...

class Pace(_message.Message):
    __slots__ = ("batch_s", "exchange_s", "round_s", "agreement", "form", "round_trip_s")
    BATCH_S_FIELD_NUMBER: _ClassVar[int]
    EXCHANGE_S_FIELD_NUMBER: _ClassVar[int]
    ROUND_S_FIELD_NUMBER: _ClassVar[int]
    AGREEMENT_FIELD_NUMBER: _ClassVar[int]
    FORM_FIELD_NUMBER: _ClassVar[int]
    ROUND_TRIP_S_FIELD_NUMBER: _ClassVar[int]
    batch_s: float
    exchange_s: float
    round_s: float
    agreement: float
    form: Codec
    round_trip_s: float
    def __init__(self, batch_s: _Optional[float] = ..., exchange_s: _Optional[float] = ..., round_s: _Optional[float] = ..., agreement: _Optional[float] = ..., form: _Optional[_Union[Codec, str]] = ..., round_trip_s: _Optional[float] = ...) -> None: ...

class Cadence(_message.Message):
    __slots__ = ("batches", "reason", "form")
    BATCHES_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    FORM_FIELD_NUMBER: _ClassVar[int]
    batches: int
    reason: str
    form: Codec
    def __init__(self, batches: _Optional[int] = ..., reason: _Optional[str] = ..., form: _Optional[_Union[Codec, str]] = ...) -> None: ...

class Alignment(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class Evaluation(_message.Message):
    __slots__ = ("correct", "samples", "loss")
    CORRECT_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    correct: int
    samples: int
    loss: float
    def __init__(self, correct: _Optional[int] = ..., samples: _Optional[int] = ..., loss: _Optional[float] = ...) -> None: ...

class Commit(_message.Message):
    __slots__ = ("samples", "devices", "left_out", "loss", "batches", "cadence", "counted_slices", "alignment")
    class CountedSlicesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    LEFT_OUT_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    BATCHES_FIELD_NUMBER: _ClassVar[int]
    CADENCE_FIELD_NUMBER: _ClassVar[int]
    COUNTED_SLICES_FIELD_NUMBER: _ClassVar[int]
    ALIGNMENT_FIELD_NUMBER: _ClassVar[int]
    samples: int
    devices: int
    left_out: _containers.RepeatedScalarFieldContainer[str]
    loss: float
    batches: int
    cadence: Cadence
    counted_slices: _containers.ScalarMap[str, int]
    alignment: Alignment
    def __init__(self, samples: _Optional[int] = ..., devices: _Optional[int] = ..., left_out: _Optional[_Iterable[str]] = ..., loss: _Optional[float] = ..., batches: _Optional[int] = ..., cadence: _Optional[_Union[Cadence, _Mapping]] = ..., counted_slices: _Optional[_Mapping[str, int]] = ..., alignment: _Optional[_Union[Alignment, _Mapping]] = ...) -> None: ...

class SnapshotChunk(_message.Message):
    __slots__ = ("header", "data")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    header: SnapshotHeader
    data: bytes
    def __init__(self, header: _Optional[_Union[SnapshotHeader, _Mapping]] = ..., data: _Optional[bytes] = ...) -> None: ...

class SnapshotHeader(_message.Message):
    __slots__ = ("step", "size", "sha256", "donor", "keys")
    STEP_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    DONOR_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    step: int
    size: int
    sha256: bytes
    donor: ChannelKey
    keys: _containers.RepeatedCompositeFieldContainer[SealedKey]
    def __init__(self, step: _Optional[int] = ..., size: _Optional[int] = ..., sha256: _Optional[bytes] = ..., donor: _Optional[_Union[ChannelKey, _Mapping]] = ..., keys: _Optional[_Iterable[_Union[SealedKey, _Mapping]]] = ...) -> None: ...

class SealedKey(_message.Message):
    __slots__ = ("device", "box")
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    BOX_FIELD_NUMBER: _ClassVar[int]
    device: str
    box: bytes
    def __init__(self, device: _Optional[str] = ..., box: _Optional[bytes] = ...) -> None: ...

class SnapshotRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SnapshotReceipt(_message.Message):
    __slots__ = ("size",)
    SIZE_FIELD_NUMBER: _ClassVar[int]
    size: int
    def __init__(self, size: _Optional[int] = ...) -> None: ...

class LeaveRequest(_message.Message):
    __slots__ = ("session", "device", "token", "reason", "finished")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    session: str
    device: str
    token: str
    reason: str
    finished: bool
    def __init__(self, session: _Optional[str] = ..., device: _Optional[str] = ..., token: _Optional[str] = ..., reason: _Optional[str] = ..., finished: _Optional[bool] = ...) -> None: ...

class LeaveReply(_message.Message):
    __slots__ = ("snapshot_wanted", "readers")
    SNAPSHOT_WANTED_FIELD_NUMBER: _ClassVar[int]
    READERS_FIELD_NUMBER: _ClassVar[int]
    snapshot_wanted: bool
    readers: _containers.RepeatedCompositeFieldContainer[ChannelKey]
    def __init__(self, snapshot_wanted: _Optional[bool] = ..., readers: _Optional[_Iterable[_Union[ChannelKey, _Mapping]]] = ...) -> None: ...

class WatchRequest(_message.Message):
    __slots__ = ("session",)
    SESSION_FIELD_NUMBER: _ClassVar[int]
    session: str
    def __init__(self, session: _Optional[str] = ...) -> None: ...

class SessionEvent(_message.Message):
    __slots__ = ("time_s", "session", "phase", "joined", "left", "report", "step", "healing", "recovered", "unlike")
    TIME_S_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    JOINED_FIELD_NUMBER: _ClassVar[int]
    LEFT_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    HEALING_FIELD_NUMBER: _ClassVar[int]
    RECOVERED_FIELD_NUMBER: _ClassVar[int]
    UNLIKE_FIELD_NUMBER: _ClassVar[int]
    time_s: float
    session: str
    phase: PhaseChanged
    joined: DeviceJoined
    left: DeviceLeft
    report: DeviceReport
    step: StepCommitted
    healing: DeviceHealing
    recovered: DeviceRecovered
    unlike: DeviceUnlike
    def __init__(self, time_s: _Optional[float] = ..., session: _Optional[str] = ..., phase: _Optional[_Union[PhaseChanged, _Mapping]] = ..., joined: _Optional[_Union[DeviceJoined, _Mapping]] = ..., left: _Optional[_Union[DeviceLeft, _Mapping]] = ..., report: _Optional[_Union[DeviceReport, _Mapping]] = ..., step: _Optional[_Union[StepCommitted, _Mapping]] = ..., healing: _Optional[_Union[DeviceHealing, _Mapping]] = ..., recovered: _Optional[_Union[DeviceRecovered, _Mapping]] = ..., unlike: _Optional[_Union[DeviceUnlike, _Mapping]] = ...) -> None: ...

class PhaseChanged(_message.Message):
    __slots__ = ("phase", "reason", "settings")
    PHASE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    phase: Phase
    reason: str
    settings: ExchangeSettings
    def __init__(self, phase: _Optional[_Union[Phase, str]] = ..., reason: _Optional[str] = ..., settings: _Optional[_Union[ExchangeSettings, _Mapping]] = ...) -> None: ...

class DeviceJoined(_message.Message):
    __slots__ = ("device", "training_samples", "software", "run_steps", "averages", "budget")
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    TRAINING_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_FIELD_NUMBER: _ClassVar[int]
    RUN_STEPS_FIELD_NUMBER: _ClassVar[int]
    AVERAGES_FIELD_NUMBER: _ClassVar[int]
    BUDGET_FIELD_NUMBER: _ClassVar[int]
    device: str
    training_samples: int
    software: str
    run_steps: int
    averages: bool
    budget: PrivacyBudget
    def __init__(self, device: _Optional[str] = ..., training_samples: _Optional[int] = ..., software: _Optional[str] = ..., run_steps: _Optional[int] = ..., averages: _Optional[bool] = ..., budget: _Optional[_Union[PrivacyBudget, _Mapping]] = ...) -> None: ...

class PrivacyBudget(_message.Message):
    __slots__ = ("epsilon", "delta", "unit")
    EPSILON_FIELD_NUMBER: _ClassVar[int]
    DELTA_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    epsilon: float
    delta: float
    unit: str
    def __init__(self, epsilon: _Optional[float] = ..., delta: _Optional[float] = ..., unit: _Optional[str] = ...) -> None: ...

class DeviceLeft(_message.Message):
    __slots__ = ("device", "reason", "bytes_received", "bytes_sent", "bytes_saved", "status")
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    BYTES_RECEIVED_FIELD_NUMBER: _ClassVar[int]
    BYTES_SENT_FIELD_NUMBER: _ClassVar[int]
    BYTES_SAVED_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    device: str
    reason: str
    bytes_received: int
    bytes_sent: int
    bytes_saved: int
    status: str
    def __init__(self, device: _Optional[str] = ..., reason: _Optional[str] = ..., bytes_received: _Optional[int] = ..., bytes_sent: _Optional[int] = ..., bytes_saved: _Optional[int] = ..., status: _Optional[str] = ...) -> None: ...

class DeviceHealing(_message.Message):
    __slots__ = ("device", "step", "reason", "wait_s")
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    WAIT_S_FIELD_NUMBER: _ClassVar[int]
    device: str
    step: int
    reason: str
    wait_s: float
    def __init__(self, device: _Optional[str] = ..., step: _Optional[int] = ..., reason: _Optional[str] = ..., wait_s: _Optional[float] = ...) -> None: ...

class DeviceRecovered(_message.Message):
    __slots__ = ("device", "step")
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    device: str
    step: int
    def __init__(self, device: _Optional[str] = ..., step: _Optional[int] = ...) -> None: ...

class DeviceUnlike(_message.Message):
    __slots__ = ("device", "step", "reason", "times")
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    TIMES_FIELD_NUMBER: _ClassVar[int]
    device: str
    step: int
    reason: str
    times: int
    def __init__(self, device: _Optional[str] = ..., step: _Optional[int] = ..., reason: _Optional[str] = ..., times: _Optional[int] = ...) -> None: ...

class DeviceReport(_message.Message):
    __slots__ = ("device", "step", "samples", "contribution", "bytes_received", "bytes_sent", "bytes_saved", "skipped")
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    CONTRIBUTION_FIELD_NUMBER: _ClassVar[int]
    BYTES_RECEIVED_FIELD_NUMBER: _ClassVar[int]
    BYTES_SENT_FIELD_NUMBER: _ClassVar[int]
    BYTES_SAVED_FIELD_NUMBER: _ClassVar[int]
    SKIPPED_FIELD_NUMBER: _ClassVar[int]
    device: str
    step: int
    samples: int
    contribution: Contribution
    bytes_received: int
    bytes_sent: int
    bytes_saved: int
    skipped: bool
    def __init__(self, device: _Optional[str] = ..., step: _Optional[int] = ..., samples: _Optional[int] = ..., contribution: _Optional[_Union[Contribution, _Mapping]] = ..., bytes_received: _Optional[int] = ..., bytes_sent: _Optional[int] = ..., bytes_saved: _Optional[int] = ..., skipped: _Optional[bool] = ...) -> None: ...

class StepCommitted(_message.Message):
    __slots__ = ("step", "commit", "evaluation", "seconds")
    STEP_FIELD_NUMBER: _ClassVar[int]
    COMMIT_FIELD_NUMBER: _ClassVar[int]
    EVALUATION_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    step: int
    commit: Commit
    evaluation: Evaluation
    seconds: float
    def __init__(self, step: _Optional[int] = ..., commit: _Optional[_Union[Commit, _Mapping]] = ..., evaluation: _Optional[_Union[Evaluation, _Mapping]] = ..., seconds: _Optional[float] = ...) -> None: ...
