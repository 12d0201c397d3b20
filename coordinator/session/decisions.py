"""What a session decides: the caller carries it out, in order."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Self

from edgenewton.common.evaluation import Evaluation
from edgenewton.v1 import exchange_pb2 as pb
from edgenewton.v1.codecs import Float32Array
from edgenewton.v1.forms import Form
from edgenewton.v1.framing import SliceKey

from coordinator.session.cadence import Cadence
from coordinator.session.masked_round import MaskedRound
from coordinator.session.members import Member
from coordinator.session.refusal import Status
from coordinator.session.robust.step_rule import StepOutcome
from coordinator.session.step import Contribution, Step


class Phase(Enum):
    """Where a session is in its life."""

    GATHERING = "gathering"
    TRAINING = "training"
    ENDED = "ended"
    ABORTED = "aborted"


@dataclass(frozen=True)
class SliceReady:
    """Send the result of a slice to all members."""

    step: int
    key: SliceKey
    values: Float32Array
    form: Form
    """Of moves, where the codec has several: that of the step, in which the devices sent theirs."""


@dataclass(frozen=True)
class StepClosing:
    """Combine what is in of a step, in any thread, and give the session the outcome; until then it takes nothing in."""

    step: int
    combine: Callable[[], StepOutcome]
    elements: int
    """That it has to look at."""
    slices: int
    """That they are in, each device's counted."""


@dataclass(frozen=True)
class StepCommitted:
    """Record the step, then tell all members that it is committed."""

    step: int
    samples: int
    """0 if all devices skipped their batches: the means are zeros then, and the loss is NaN."""
    devices: int
    left_out: tuple[str, ...]
    loss: float
    evaluation: Evaluation | None
    seconds: float
    batches: int = 1
    """Batches that each device trained in it; the step has the number of the first."""
    counted_slices: Mapping[str, int] = field(default_factory=dict)
    """For each device whose contribution is not in whole, how many of its slices are in the means all the same."""
    cadence: Cadence | None = None
    """Of the next step, if the session chooses it."""
    alignment: str = ""
    """Why the devices average their weights in the next step; empty if they do not."""

    @property
    def last_batch(self) -> int:
        """Number of the last batch in it."""
        return self.step + self.batches - 1

    @classmethod
    def of(
        cls,
        step: Step,
        left_out: Collection[str],
        lagging: Collection[str],
        now: float,
        cadence: Cadence | None = None,
        alignment: str = "",
    ) -> Self:
        """Sum up a complete step; a device that skipped its batch has no part in samples, devices and loss.

        Args:
            step: the step.
            left_out: devices that were not in time.
            lagging: members that it did not wait for; they may have sent a part all the same.
            now: the time.
            cadence: of the next step, if the session chooses it.
            alignment: why the devices average their weights in the next step, if they do.

        """
        # By name, not as they came: the same contributions give the same loss, to the last bit.
        contributions = [contribution for _, contribution in sorted(step.contributions.items())]
        weighty = [contribution for contribution in contributions if contribution.weight]
        samples = sum(contribution.weight for contribution in weighty)
        evaluation = Evaluation.union([c.evaluation for c in contributions if c.evaluation is not None])
        loss = sum(c.loss * c.weight for c in weighty) / samples if samples else math.nan
        if step.totals is not None:
            samples, evaluation = step.totals.samples, step.totals.evaluation
            loss = step.totals.loss / samples if samples else math.nan
        return cls(
            step=step.number,
            samples=samples,
            devices=len(weighty) if samples else 0,
            left_out=tuple(sorted(left_out)),
            loss=loss,
            evaluation=evaluation,
            seconds=now - (step.began_at if step.began_at is not None else now),
            batches=step.batches,
            counted_slices={
                device: step.counted(device)
                for device in sorted({*left_out, *lagging, *step.late, *(step.contributions if step.is_lost else ())})
            },
            cadence=cadence,
            alignment=alignment,
        )


@dataclass(frozen=True)
class StepSet:
    """The session stands at a step that does not follow from the last one: no steps before it can be replayed."""

    step: int


@dataclass(frozen=True)
class ModelChanged:
    """The session has the model and options of a device now; or none any more, since nobody is left who brought it."""

    device: str | None


@dataclass(frozen=True)
class DeviceJoined:
    """Announce a new member, or one that is back."""

    member: Member


@dataclass(frozen=True)
class DeviceRemoved:
    """End the stream of a former member, with a status and a reason."""

    device: str
    status: Status
    reason: str


@dataclass(frozen=True)
class DeviceReported:
    """Announce a complete contribution."""

    device: str
    step: int
    contribution: Contribution


@dataclass(frozen=True)
class DeviceHealing:
    """Announce that a member does not take part for now; tell it if it needs a snapshot and does not know."""

    device: str
    step: int
    reason: str
    must_be_told: bool = False
    wait_s: float = 0.0
    """Seconds in which no step waits for it, because it was late repeatedly."""


@dataclass(frozen=True)
class DeviceRecovered:
    """Announce that a member takes part again."""

    device: str
    step: int


@dataclass(frozen=True)
class DeviceUnlike:
    """Announce that something that a device sent is unlike what the others sent, and counted less, or not at all."""

    device: str
    step: int
    reason: str
    """A sentence without its subject."""
    times: int
    """In so many steps so far."""


@dataclass(frozen=True)
class PhaseChanged:
    """Announce a new phase; after ENDED and ABORTED there are no members left."""

    phase: Phase
    reason: str


@dataclass(frozen=True)
class KeysWanted:
    """Ask the devices that may mask in a step for their keys."""

    step: int
    circle: Mapping[str, pb.ChannelKey | None]
    """With their channel keys, also of those that are gone since."""
    attempt: int
    """Tells this question from an earlier one about the same step."""
    only: tuple[str, ...] | None = None
    """Those of them that are asked; None for all."""


@dataclass(frozen=True)
class MaskersSettled:
    """Tell those that mask in a step who they are, and what each needs of the others."""

    step: int
    round: MaskedRound
    scales: Sequence[bytes]
    """Of each slice of all tensors, as they are written."""
    only: tuple[str, ...] | None = None


@dataclass(frozen=True)
class SharesWanted:
    """Ask those that mask in a step for what unmasks the sum of those that contributed."""

    step: int
    round: MaskedRound
    only: tuple[str, ...] | None = None


Decision = (
    SliceReady
    | StepClosing
    | StepCommitted
    | StepSet
    | ModelChanged
    | DeviceJoined
    | DeviceRemoved
    | DeviceReported
    | DeviceHealing
    | DeviceRecovered
    | DeviceUnlike
    | PhaseChanged
    | KeysWanted
    | MaskersSettled
    | SharesWanted
)
