"""Members of a session: what a device says of itself, and where it stands."""

import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto

from edgenewton.v1 import PROTOCOL_VERSION
from edgenewton.v1 import exchange_pb2 as pb
from edgenewton.v1.fingerprint import TensorSpec
from edgenewton.v1.framing import SliceKey


@dataclass(frozen=True)
class Joining:
    """What a device says of itself when it joins."""

    device: str
    fingerprint: tuple[TensorSpec, ...]
    options: Mapping[str, str]
    weights_digest: bytes
    training_samples: int = 0
    protocol_version: int = PROTOCOL_VERSION
    software: str = ""
    codecs: Collection[int] = (pb.CODEC_FP32, pb.CODEC_FP16, pb.CODEC_BF16)
    next_step: int | None = None
    """The first step that it has not applied; None for a device that has not trained yet."""
    token: str = ""
    """Of its last membership, when it joins again."""


class Standing(Enum):
    """Whether a step waits for a member."""

    ACTIVE = auto()
    """Its state is the session's: steps wait for it."""
    LAGGING = auto()
    """Its state becomes the session's by the steps on its stream; it is active from its first frame in time."""
    HEALING = auto()
    """It needs a snapshot first."""


@dataclass
class Member:
    """A device's place in the session."""

    joining: Joining
    standing: Standing
    heard_at: float
    token: str = field(default_factory=lambda: secrets.token_hex(16))
    is_connected: bool = False
    completed: int = -1
    """The last step that it completed on its present stream."""
    sent: set[SliceKey] = field(default_factory=set)
    """Slices that it sent on its present stream in the step that is on."""
    samples: int | None = None
    """What it claims as its batch in the step that is on."""

    @property
    def device(self) -> str:
        """Its id."""
        return self.joining.device

    def begin_step(self) -> None:
        """Forget what belongs to the step before."""
        self.sent = set()
        self.samples = None
