"""One step of a session: collects the members' slices and says when a slice, and the step, is ready."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from edgenewton.common.evaluation import Evaluation
from edgenewton.v1.codecs import Float32Array
from edgenewton.v1.framing import SliceKey

from coordinator.session.aggregation import WeightedMean


@dataclass(frozen=True)
class Contribution:
    """What a device says when its contribution to a step is complete."""

    samples: int
    loss: float
    evaluation: Evaluation | None = None
    weights_digest: bytes = b""


@dataclass
class _Slice:
    mean: WeightedMean = field(default_factory=WeightedMean)
    contributors: set[str] = field(default_factory=set)


class Step:
    """The contributions to one step, without regard to time or membership rules.

    What a device contributed stays in, whatever becomes of it: each slice is the mean over those whose slice came.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.began_at: float | None = None
        self.contributions: dict[str, Contribution] = {}
        self._pending: dict[SliceKey, _Slice] = {}
        self._sent_by: dict[str, set[SliceKey]] = {}
        self._released: set[SliceKey] = set()

    def begin(self, now: float) -> None:
        """Note when the first contribution came."""
        if self.began_at is None:
            self.began_at = now

    def has(self, device: str, key: SliceKey) -> bool:
        """Whether a device's slice is in, from this or an earlier connection."""
        return key in self._sent_by.get(device, ())

    def add(self, device: str, samples: int, key: SliceKey, values: Float32Array) -> None:
        """Add one slice of a device that is not in yet; one that comes after its mean has left is dropped."""
        self._sent_by.setdefault(device, set()).add(key)
        if key in self._released:
            return
        piece = self._pending.setdefault(key, _Slice())
        piece.mean.add(values, samples)
        piece.contributors.add(device)

    def complete(self, device: str, contribution: Contribution) -> SliceKey | None:
        """Note that a device has sent everything.

        Returns:
            A slice in which this device's contribution differs from that of the first that was complete, or None.

        """
        model = next(iter(self.contributions), device)
        differing = self._sent_by.get(device, set()) ^ self._sent_by.get(model, set())
        if differing:
            return min(differing)
        self.contributions.setdefault(device, contribution)
        return None

    def heard_from(self, device: str) -> bool:
        """Whether a device has contributed anything."""
        return device in self._sent_by or device in self.contributions

    def ready(self, members: Collection[str]) -> Iterator[tuple[SliceKey, Float32Array]]:
        """Yield, once, each slice that all `members` have contributed to, with its mean."""
        needed = set(members)
        if not needed:
            return
        for key in [key for key, piece in self._pending.items() if needed <= piece.contributors]:
            self._released.add(key)
            yield key, self._pending.pop(key).mean.result()

    def is_complete(self, members: Collection[str]) -> bool:
        """Whether all `members` have completed their contributions."""
        return all(member in self.contributions for member in members)
