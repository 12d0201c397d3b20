"""Members of a session: what a device says of itself, and where it stands."""

import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from functools import cached_property

from edgenewton.v1 import exchange_pb2 as pb
from edgenewton.v1.fingerprint import model_fingerprint
from edgenewton.v1.framing import SliceKey
from edgenewton.v1.limits import largest
from edgenewton.v1.sketch import Sketch
from edgenewton.v1.tensor_spec import TensorSpec

from coordinator.session.refusal import RefusedError, Status, invalid

MAX_SAMPLES = int(largest(pb.Frame, "samples"))
"""Largest batch that a device may claim; see `edgenewton.v1.framing.MAX_MAGNITUDE`."""


@dataclass(frozen=True)
class Joining:
    """What a device says of itself when it joins."""

    device: str
    fingerprint: tuple[TensorSpec, ...]
    options: Mapping[str, str]
    weights_digest: bytes
    training_samples: int = 0
    software: str = ""
    codecs: Collection[int] = (pb.CODEC_FP32, pb.CODEC_FP16, pb.CODEC_BF16)
    next_step: int | None = None
    """The first step that it has not applied; None for a device that has not trained yet."""
    token: str = ""
    """Of its last membership, when it joins again."""
    sketch: Sketch | None = None
    """Of its weights, with `next_step` as the seed, or 0."""
    frozen_sketch: Sketch | None = None
    """Of the weights that stay as they are, with the seed 0."""
    run_steps: int | None = None
    """Steps of the whole run, from step 0 on; None if it does not say."""
    channel_key: pb.ChannelKey | None = None
    """For secure aggregation."""

    @cached_property
    def model(self) -> str:
        """What tells its model and options from others: see `edgenewton.v1.fingerprint.model_fingerprint`."""
        return model_fingerprint(self.fingerprint, self.options)


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
    """What it claims as its batch in the step that is on; 0 if it skips it."""
    most_samples: int = MAX_SAMPLES
    """So many of them count at most."""

    @property
    def device(self) -> str:
        """Its id."""
        return self.joining.device

    def begin_step(self) -> None:
        """Forget what belongs to the step before."""
        self.sent = set()
        self.samples = None

    def begin_anew(self) -> None:
        """Forget what it sent with a state that another has replaced; it may take a step again that it completed."""
        self.begin_step()
        self.completed = -1

    def is_in_time(self, step: int, current: int) -> bool:
        """Tell whether what it sent for a step counts, and does not come too late for the step that is on.

        Raises:
            RefusedError: it is for a step to come, or for one that the device completed.

        """
        if step > current or (step <= self.completed and step != current):
            raise RefusedError(
                Status.INVALID_ARGUMENT,
                f"device {self.device!r} sent a frame of step {step}; the session is at step {current}",
            )
        if step == self.completed:
            raise invalid(self.device, step, "completed its contribution twice")
        return step == current

    def claim(self, samples: int | None, step: int) -> None:
        """Note the size of its batch; None skips it, even after a part of it: that the rest is bad may show late.

        Raises:
            RefusedError: it is impossible, or not what the device said before in the same step.

        """
        if samples is None:
            self.samples = 0
            return
        if not 1 <= samples <= MAX_SAMPLES:
            reason = f"claims a batch of {samples} samples; 1 to {MAX_SAMPLES} are possible"
            raise invalid(self.device, step, reason)
        if self.samples not in (None, samples):
            raise invalid(self.device, step, f"claims {samples} samples after {self.samples} in the same step")
        self.samples = samples
