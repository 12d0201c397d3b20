"""The exchange as plans and the trainer see it, whatever carries it.

An `Exchange` is a way to the other devices; joining gives a `Membership`, with which a device takes part in each step.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from edgenewton.common.evaluation import Evaluation
from edgenewton.v1.forms import Form
from edgenewton.v1.sketch import Sketch
from edgenewton.v1.stage import Stage
from edgenewton.v1.tensor_spec import TensorSpec
from torch import Tensor

TensorKey = tuple[str, str]
"""Kind and name of an exchanged tensor, e.g. ("gradient", "features.0.weight")."""


Stages = Callable[[TensorSpec], Sequence[Stage[Any, Any]]]
"""Gives the stages that a device puts before the codec of a tensor."""


def no_stages(spec: TensorSpec) -> Sequence[Stage[Any, Any]]:  # noqa: ARG001
    """Return none: a tensor is written as it is."""
    return ()


@dataclass(frozen=True)
class Pace:
    """How long a device takes, in seconds, and how far it agrees with the others; see the protocol's `Pace`."""

    batch_s: float
    exchange_s: float
    round_s: float
    agreement: float
    form: Form | None = None
    """Of the moves in the contribution that it comes with, if the session chooses that."""


@dataclass(frozen=True)
class StepResult:
    """What a committed step gave: for each contributed tensor the sample-weighted mean over all devices."""

    step: int
    tensors: Mapping[TensorKey, Tensor]
    samples: int
    """0 if all devices skipped their batches: the means are zeros, the loss is NaN, and nothing is to be applied."""
    devices: int
    loss: float
    """The training loss: the mean over the samples of all devices' batches, before their update."""
    batches: int = 1
    """Batches that each device trained in it; `step` is the number of the first."""
    next_batches: int | None = None
    """How many batches each device is to train in the next step, if the session chooses that."""
    next_form: Form | None = None
    """In which form moves are to be written in the next step, if the session chooses that."""
    aligns_next: bool = False
    """Whether each device is to contribute its parameters in the next step, too, and to take the means for its own."""
    left_out: tuple[str, ...] = ()
    """Devices whose contributions are not, or only in part, behind the means."""
    is_healed: bool = False
    """This device has loaded the state of another instead; there are no tensors, and nothing is to be applied."""
    is_own: bool = False
    """Whether it is of this device's batch alone, within a round of local steps."""

    @property
    def next_step(self) -> int:
        """Number of the step that comes next."""
        return self.step + self.batches


class Replica(Protocol):
    """What an exchange needs of the model that a device trains: one state among equal ones."""

    @property
    def next_step(self) -> int | None:
        """The first step that the state does not contain; None for a state that was not trained."""

    @property
    def is_shared(self) -> bool:
        """Whether the weights are equal on all devices before every step."""

    @property
    def epsilon(self) -> float | None:
        """What this device's data have cost of a privacy budget so far; None without one."""

    def digest(self) -> bytes:
        """Return the SHA-256 of the weights."""

    def sketch(self, seed: int) -> Sketch:
        """Return the sketch of the weights with a seed."""

    def frozen_sketch(self) -> Sketch | None:
        """Return that of the weights that stay as they are, with the seed 0; None if there are none."""

    def dump(self) -> bytes:
        """Return the whole state: weights, optimizer, curvature."""

    def load(self, data: bytes) -> None:
        """Take over a state that another device dumped."""

    def apply(self, result: StepResult) -> None:
        """Apply a step that this device saw, whether or not it contributed."""


@dataclass(frozen=True)
class Traffic:
    """Bytes of the protocol's messages so far, without the transport's own framing."""

    sent: int = 0
    received: int = 0


class Contributions(Protocol):
    """Takes what a device tells the others in a step."""

    def contribute(self, key: TensorKey, value: Tensor) -> None:
        """Take one tensor."""


class Membership(Contributions, Protocol):
    """A device's place among others: synchronises tensors with theirs, one step after the other.

    For every step `begin`, `contribute` for each tensor as it becomes known, `complete`, `collect`. All devices
    contribute the same tensors in the same step. A step has the number of its first batch: one of several batches is
    followed by as many numbers that no step has.
    """

    @property
    def step(self) -> int:
        """Number of the step that is on, or comes next."""

    def begin(self, samples: int, *, is_repeated: bool = False) -> None:
        """Begin the next step.

        Args:
            samples: in the batch; with 0 it is skipped from the beginning: see `skip`.
            is_repeated: whether this device contributed to the step already, before it was restarted from the state of
                that time: if that has arrived, it is what counts, and nothing is late.

        """

    def skip(self) -> None:
        """Skip what is left of this step's batch, because it cannot be used.

        The same tensors are contributed as ever, with zeros for those that are left; they weigh nothing in the means.
        What was contributed before stays in.

        Raises:
            ExchangeError: the step has not begun.

        """

    def contribute(self, key: TensorKey, value: Tensor) -> None:
        """Send one tensor; returns at once and keeps no reference to `value`.

        Raises:
            NonFiniteGradientError: `value` holds NaN or infinity; nothing of it was sent, so that after `skip` zeros
                may take its place.
            ExchangeError: the exchange has failed.

        """

    def complete(
        self,
        loss: float,
        evaluation: Evaluation | None = None,
        hyperparameters: Mapping[str, float] | None = None,
        batches: int = 1,
        pace: Pace | None = None,
    ) -> None:
        """End this device's contribution, and return at once.

        Args:
            loss: mean over its samples.
            evaluation: of its model before the step.
            hyperparameters: what the step is applied with, such as a learning rate that a scheduler changes. They must
                be equal on all devices that tell any; a device whose differ from those of the first is refused by name.
            batches: how many it has trained in the step; equal on all devices.
            pace: how long it took, for a session that is to choose its own cadence; all devices tell it, or none.

        Raises:
            ExchangeError: the step has not begun.

        """

    @property
    def first_batches(self) -> int | None:
        """How many batches each device is to train in the first step, if the session chooses that and says it."""

    def has_committed(self, step: int) -> bool:
        """Whether a step has committed, with this device or without: what it contributes from now on is late."""

    def collect(self, *, catches_up: bool = True) -> StepResult:
        """Wait for the step to commit. Between `complete` and this a device may do what it likes.

        A device that fell behind applies, through its replica, all steps that it missed but the last, which is
        returned. One whose state is wrong loads that of a live member; `StepResult.is_healed` then says so.

        Args:
            catches_up: whether steps that have committed after this one are taken too, as missed ones.

        Raises:
            ExchangeError: the step cannot commit with this device; a deadline always ends the wait.

        """

    def resume_at(self, step: int) -> None:
        """Go on at `step`, unless a coordinator has set the step."""

    def state_dict(self) -> dict[str, Any]:
        """Return what this device has still to send: what its stages remember of earlier steps."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with what `state_dict` gave, of this device alone and of the same tensors.

        Raises:
            ValueError: it does not suit the exchange's stages.

        """


@runtime_checkable
class FormedMembership(Protocol):
    """A membership in whose session the form of the moves may change; in others they are written as its codec does."""

    @property
    def first_form(self) -> Form | None:
        """In which form moves are to be written in the first step, if the session chooses that and says it."""

    def write_as(self, form: Form) -> None:
        """Write moves in this form from now on; call it between two steps, because all of one are to be alike."""


@runtime_checkable
class QuorumMembership(Protocol):
    """A membership in whose session a step needs a number of devices."""

    @property
    def least_devices(self) -> int:
        """So many devices' contributions are in the mean of a step at least."""


class Exchange(Protocol):
    """A way to the other devices: `join` once, and `close` at the end."""

    @property
    def device(self) -> str:
        """Id of this device."""

    @property
    def traffic(self) -> Traffic:
        """Bytes sent and received so far."""

    @property
    def is_alone(self) -> bool:
        """Whether there are no other devices."""

    def join(
        self,
        tensors: Sequence[TensorSpec],
        options: Mapping[str, str],
        replica: Replica,
        training_samples: int = 0,
        stages: Stages = no_stages,
    ) -> Membership:
        """Take a place among the devices; all then hold the same state.

        Args:
            tensors: everything that may be exchanged.
            options: what must be equal on all devices.
            replica: this device's state; it loads another's if it differs from the session's.
            training_samples: how many private samples the device holds.
            stages: gives the stages that a tensor passes before it is written. They are linear and the same on all
                devices in a step, so that the mean of what they give is what they give of the mean; it is undone when
                the step is collected.

        Raises:
            ExchangeError: the coordinator is down or refuses this device.

        """

    def close(self, failure: str = "", *, ended: str = "") -> None:
        """Give the place back after all steps were taken.

        Args:
            failure: why this device leaves before; the others are told, and wait for it to come back.
            ended: why all devices take no further step, as far as it knows: it leaves as if there were none.

        """
