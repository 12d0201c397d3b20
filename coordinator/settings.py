"""Settings of a session, checked where they enter."""

from typing import Annotated, Literal, Self

from edgenewton.v1 import MAX_MESSAGE_BYTES
from edgenewton.v1 import exchange_pb2 as pb
from edgenewton.v1.codec import CODECS
from pydantic import BaseModel, ConfigDict, Field, model_validator

CodecName = Literal["fp32", "fp16", "bf16"]
Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]


class SessionSettings(BaseModel):
    """What the coordinator sets for a session; all its devices are told."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    devices: Annotated[int, Field(ge=1, le=10_000)] = 4
    """The session begins when so many devices have joined."""
    quorum: Annotated[int, Field(ge=1)] | None = None
    """The session goes on while so many devices are left; None means all of them."""
    codec: CodecName = "fp32"
    """How tensors are written on the wire."""
    frame_bytes: Annotated[int, Field(ge=1_024, le=MAX_MESSAGE_BYTES // 2)] = 1 << 20
    """A frame leaves when its data reaches this size."""
    step_deadline_s: Seconds = 60.0
    """Seconds from a step's first frame to its deadline."""
    join_deadline_s: Seconds = 60.0
    """Seconds from the first join to the beginning of the session, at most."""
    idle_deadline_s: Seconds = 600.0
    """Seconds in which no device sends anything, after which the session is aborted."""
    first_step: Annotated[int, Field(ge=0)] = 0
    """Number of the session's first step."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.quorum is not None and self.quorum > self.devices:
            raise ValueError(f"quorum {self.quorum} is more than the session's {self.devices} devices")
        return self

    @property
    def required(self) -> int:
        """How many devices a step needs at least."""
        return self.devices if self.quorum is None else self.quorum

    def to_proto(self) -> pb.ExchangeSettings:
        """Return the message that devices are sent."""
        return pb.ExchangeSettings(
            codec=CODECS[self.codec].number,
            frame_bytes=self.frame_bytes,
            devices=self.devices,
            quorum=self.required,
            step_deadline_s=self.step_deadline_s,
            join_deadline_s=self.join_deadline_s,
        )
