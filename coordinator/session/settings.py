"""Settings of a session, checked where they enter."""

from typing import Annotated, Any, Literal, Self

from edgenewton.v1 import MAX_MESSAGE_BYTES
from edgenewton.v1 import exchange_pb2 as pb
from edgenewton.v1.codecs import CODEC_NUMBERS, CodecChoice
from pydantic import BaseModel, ConfigDict, Field, model_validator

MAX_DEVICES = 10_000

CodecName = Literal[
    "auto",
    "fp32",
    "bf16",
    "fp16",
    "int8",
    "powersgd",
    "topk",
    "int4",
    "ternary",
    "sign",
    "sparse4",
    "sparse2",
    "sparse1",
]
AggregatorName = Literal["mean", "clip", "median", "trimmed-mean", "krum", "multi-krum", "centred-clip", "history"]
Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]
SecondsOrZero = Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False)]


_BY_ELEMENT = ("median", "trimmed-mean")
_FOR_SUMS = ("int8", "fp32", "bf16", "fp16")
_SPARSE = ("topk", "sparse4", "sparse2", "sparse1")


class SessionSettings(BaseModel):
    """What the coordinator sets for a session; all its devices are told."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    devices: Annotated[int, Field(ge=1, le=MAX_DEVICES)] = 4
    """The session begins when so many devices have joined."""
    quorum: Annotated[int, Field(ge=1)] | None = None
    """A step needs so many devices, and so does the session to begin at the join deadline; None means all of them."""
    max_devices: Annotated[int, Field(ge=1, le=MAX_DEVICES)] | None = None
    """So many devices may take part at once, those that join later included; None means `devices`."""
    codec: CodecName = "auto"
    """How gradients and moves are written; "auto" for fp32, and moves in a form that the session chooses."""
    powersgd_rank: Annotated[int, Field(ge=1, le=1_024)] = CodecChoice.powersgd_rank
    """Rank of the powersgd codec."""
    topk_fraction: Annotated[float, Field(gt=0, le=1)] = CodecChoice.topk_fraction
    """Part of the elements that the codecs topk, sparse4, sparse2 and sparse1 keep."""
    aggregator: AggregatorName = "mean"
    """How the devices' contributions become one: "mean", or a rule that bears bad devices. Such a rule holds the
    contributions of all devices, and their results leave when the step commits."""
    bad_devices: Annotated[int, Field(ge=0, le=MAX_DEVICES // 2)] | None = None
    """So many bad devices the aggregator must bear, if it can; None means a quarter of those that contribute."""
    max_samples: Annotated[int, Field(ge=1)] | None = None
    """A device's contribution counts with at most so many samples; None means 16 times the median of what the devices
    declare."""
    secure_aggregation: bool = False
    """Whether the devices mask what they send, so that the coordinator learns sums only. The codec is for the means
    alone then: int8, or fp32, bf16 or fp16."""
    mask_bits: Literal[4, 8] = 8
    """With secure aggregation: bits of a device's integers of moves, without those that the sum takes; of gradients the
    sum has twice as many, or more if it needs them."""
    release: Literal["slice", "step"] = "slice"
    """When the results leave: each slice once all have contributed to it, or all when the step commits."""
    frame_bytes: Annotated[int, Field(ge=1_024, le=MAX_MESSAGE_BYTES // 2)] = 1 << 20
    """A frame leaves when its data reaches this size."""
    step_deadline_s: Seconds = 60.0
    """Seconds from a step's first frame to its deadline."""
    join_deadline_s: Seconds = 60.0
    """Seconds from the first join to the beginning of the session, at most."""
    rejoin_deadline_s: SecondsOrZero = 60.0
    """Seconds that a session without its quorum waits for devices to come back."""
    heartbeat_s: Seconds = 5.0
    """Seconds between two signs of life of an idle device."""
    lease_s: Seconds = 20.0
    """Seconds without a sign of life, after which a device loses its place."""
    idle_deadline_s: Seconds = 600.0
    """Seconds in which no device contributes anything, after which the session is aborted."""
    owner_lease_s: Seconds | None = None
    """Seconds without a sign of life from whoever opened the session, after which it is aborted; None for never."""
    digest_every: Annotated[int, Field(ge=0)] = 50
    """Steps between two comparisons of the devices' weights; 0 for never."""
    first_step: Annotated[int, Field(ge=0)] = 0
    """Number of the session's first step, unless a device comes with a state of a later one."""
    replay_bytes: Annotated[int, Field(ge=0)] = 64 << 20
    """Bytes of past steps that are kept for devices that come back; the last step is kept in any case."""
    allow: tuple[str, ...] = ()
    """Devices that are admitted, by the names in their certificates."""
    allow_labels: tuple[str, ...] = ()
    """Labels whose devices are admitted, too. Without either list every device is."""
    trust_state_of: tuple[str, ...] = ()
    """Devices whose state may be of a later step than the session knows; the others take it over."""
    model_of: str = ""
    """The device whose model and options are the session's; empty for those of the first, or of most."""
    model_fingerprint: Annotated[str, Field(pattern="^([0-9a-f]{64})?$")] = ""
    """What `edgenewton.v1.fingerprint.model_fingerprint` must give of the session's model; empty for any."""
    max_model_bytes: Annotated[int, Field(ge=1)] = 8 << 30
    """Largest fingerprint that is accepted, all tensors in float32 together."""
    max_snapshot_bytes: Annotated[int, Field(ge=1)] = 8 << 30
    """Largest state that a device may hand in."""

    @model_validator(mode="before")
    @classmethod
    def _choose(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("secure_aggregation") and given.get("codec", "auto") == "auto":
            return {**given, "codec": "int8"}
        return given

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.quorum is not None and self.quorum > self.devices:
            raise ValueError(f"quorum {self.quorum} is more than the session's {self.devices} devices")
        if self.max_devices is not None and self.max_devices < self.devices:
            raise ValueError(f"max_devices {self.max_devices} is less than the session's {self.devices} devices")
        if self.bad_devices is not None and 2 * self.bad_devices >= self.devices:
            raise ValueError(
                f"bad_devices {self.bad_devices} of the session's {self.devices} devices are half or more: no "
                "aggregator can tell which half is the bad one"
            )
        if self.aggregator in _BY_ELEMENT and self.codec in _SPARSE:
            raise ValueError(
                f"the aggregator {self.aggregator} takes each element on its own, and the codec {self.codec} sends few "
                "of them: what most devices did not send would be 0; take the aggregator history, or another codec"
            )
        if self.secure_aggregation and self.aggregator != "mean":
            raise ValueError(
                f"the aggregator {self.aggregator} looks at what each device sends, and secure_aggregation hides just "
                "that; take the aggregator mean, or no secure_aggregation"
            )
        if self.secure_aggregation and self.codec not in _FOR_SUMS:
            raise ValueError(
                f"with secure_aggregation all devices send the same elements, and the codec {self.codec} chooses some, "
                f"or writes them otherwise each time; take one of {', '.join(_FOR_SUMS)}"
            )
        if self.secure_aggregation and self.required < 2:
            raise ValueError("with secure_aggregation a step needs two devices at least: the sum of one is its own")
        if self.lease_s < 2 * self.heartbeat_s:
            raise ValueError(f"lease_s {self.lease_s:g} is less than two heartbeats of {self.heartbeat_s:g} s")
        return self

    @property
    def required(self) -> int:
        """How many devices a step needs at least."""
        return self.devices if self.quorum is None else self.quorum

    @property
    def least_in_sum(self) -> int:
        """With secure aggregation: so many devices' contributions are in a sum at least."""
        return max(2, self.required)

    @property
    def capacity(self) -> int:
        """How many devices may take part at once."""
        return self.devices if self.max_devices is None else self.max_devices

    @property
    def codec_choice(self) -> CodecChoice:
        """The codec with its parameters."""
        return CodecChoice(self.codec, self.powersgd_rank, self.topk_fraction)

    def to_proto(self) -> pb.ExchangeSettings:
        """Return the message that devices are sent."""
        return pb.ExchangeSettings(
            codec=CODEC_NUMBERS[self.codec],
            frame_bytes=self.frame_bytes,
            devices=self.devices,
            quorum=self.required,
            step_deadline_s=self.step_deadline_s,
            join_deadline_s=self.join_deadline_s,
            powersgd_rank=self.powersgd_rank,
            topk_fraction=self.topk_fraction,
            heartbeat_s=self.heartbeat_s,
            lease_s=self.lease_s,
            rejoin_deadline_s=self.rejoin_deadline_s,
            digest_every=self.digest_every,
            secure_aggregation=pb.SecureAggregation(bits=self.mask_bits, least=self.least_in_sum)
            if self.secure_aggregation
            else None,
        )
