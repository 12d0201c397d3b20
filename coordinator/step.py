"""One step of a session: collects the members' slices and says when a slice, and the step, is ready."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from edgenewton.v1.codec import Float32Array

from coordinator.aggregation import WeightedMean
from coordinator.refusal import RefusedError, Status


@dataclass(frozen=True)
class Evaluation:
    """How a model did on held-out samples."""

    correct: int
    samples: int
    loss: float


@dataclass(frozen=True)
class Contribution:
    """What a device says when its contribution to a step is complete."""

    samples: int
    loss: float
    evaluation: Evaluation | None = None


@dataclass(frozen=True, order=True)
class SliceKey:
    """Identifies a slice: number of the tensor in the fingerprint, first element."""

    tensor: int
    offset: int


@dataclass
class _Slice:
    mean: WeightedMean = field(default_factory=WeightedMean)
    contributors: set[str] = field(default_factory=set)


class Step:
    """The contributions to one step, without regard to time or membership rules."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.began_at: float | None = None
        self.contributions: dict[str, Contribution] = {}
        self._pending: dict[SliceKey, _Slice] = {}
        self._sent_by: dict[str, set[SliceKey]] = {}
        self._samples: dict[str, int] = {}

    def add(self, device: str, samples: int, key: SliceKey, values: Float32Array, now: float) -> None:
        """Add one slice of a device.

        Raises:
            RefusedError: the device sent the slice twice, or changed its number of samples within the step.

        """
        self._begin(device, samples, now)
        sent = self._sent_by[device]
        if key in sent:
            raise RefusedError(Status.INVALID_ARGUMENT, f"sent the slice at {key.offset} twice")
        sent.add(key)
        piece = self._pending.setdefault(key, _Slice())
        piece.mean.add(values, samples)
        piece.contributors.add(device)

    def complete(self, device: str, contribution: Contribution, now: float) -> SliceKey | None:
        """Note that a device has sent everything.

        Returns:
            A slice in which this device's contribution differs from that of the first that was complete, or None.

        Raises:
            RefusedError: it was complete already, or changed its number of samples within the step.

        """
        self._begin(device, contribution.samples, now)
        if device in self.contributions:
            raise RefusedError(Status.INVALID_ARGUMENT, "completed its contribution twice")
        model = next(iter(self.contributions), device)
        differing = self._sent_by[device] ^ self._sent_by[model]
        if differing:
            return min(differing)
        self.contributions[device] = contribution
        return None

    def heard_from(self, device: str) -> bool:
        """Whether a device has contributed anything."""
        return device in self._sent_by

    def ready(self, members: Iterable[str]) -> Iterator[tuple[SliceKey, Float32Array]]:
        """Yield, once, each slice that all `members` have contributed to, with its mean."""
        needed = set(members)
        for key in [key for key, piece in self._pending.items() if needed <= piece.contributors]:
            yield key, self._pending.pop(key).mean.result()

    def is_complete(self, members: Iterable[str]) -> bool:
        """Whether all `members` have completed their contributions."""
        return all(member in self.contributions for member in members)

    def _begin(self, device: str, samples: int, now: float) -> None:
        if self.began_at is None:
            self.began_at = now
        self._sent_by.setdefault(device, set())
        known = self._samples.setdefault(device, samples)
        if samples < 1:
            raise RefusedError(Status.INVALID_ARGUMENT, f"claims a batch of {samples} samples; at least 1 is needed")
        if samples != known:
            raise RefusedError(Status.INVALID_ARGUMENT, f"claims {samples} samples after {known} in the same step")
