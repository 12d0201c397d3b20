"""One step of a session: collects the members' slices and says when a slice, and the step, is ready."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from edgenewton.common.evaluation import Evaluation
from edgenewton.secure_aggregation.contribution_form import Totals
from edgenewton.secure_aggregation.modular_integers import Integers
from edgenewton.v1.codecs import Float32Array
from edgenewton.v1.framing import SliceKey
from edgenewton.v1.sketch import Sketch

from coordinator.session.aggregation import Aggregator
from coordinator.session.agreement import Agreement
from coordinator.session.cadence import Pace
from coordinator.session.release import ReleasePolicy
from coordinator.session.robust.step_rule import Held, StepOutcome

Values = npt.NDArray[Any]
"""Of a slice: float32, or masked integers with secure aggregation."""


@dataclass(frozen=True)
class Contribution:
    """What a device says when its contribution to a step is complete."""

    samples: int | None
    """None if the device skipped its batch: it weighs nothing then, and its loss says nothing."""
    loss: float
    evaluation: Evaluation | None = None
    sketch: Sketch | None = None
    """Of its weights before the step, when they are compared."""
    hyperparameters: Mapping[str, float] = field(default_factory=dict)
    """What it updates its weights with in this step; empty if it does not say."""
    batches: int = 1
    """Batches that it trained in the step; equal on all devices."""
    pace: Pace | None = None
    """How long it took, if it says."""
    most_samples: int | None = None
    """So many of its samples count at most."""
    numbers: Integers | None = None
    """With secure aggregation: what else it says, masked; samples are 1 then, and loss and evaluation say nothing."""
    epsilon: float | None = None
    """What its data have cost of a privacy budget so far, if it has one."""

    @property
    def weight(self) -> int:
        """How much it counts: so many samples."""
        samples = self.samples or 0
        return samples if self.most_samples is None else min(samples, self.most_samples)


@dataclass
class _Slice:
    length: int
    aggregator: Aggregator | None = None
    """None until a contribution that weighs something, and where a rule sees the whole step."""
    held: list[Held] = field(default_factory=list)
    """For a rule that sees the whole step."""
    contributors: set[str] = field(default_factory=set)


class Step:
    """The contributions to one step, without regard to time or membership rules.

    What a device contributed stays in, whatever becomes of it: each slice combines those whose slice came. A rule that
    sees the whole step combines those whose contributions are complete.

    Args:
        number: of its first batch.
        aggregator: combines the contributions to one slice; None if a rule combines all slices at once: see `close`.
        release: when results leave.
        agreement: what the complete devices do alike.
        is_limited_later: whether it is not known yet how many samples count: see `limit`.

    """

    def __init__(
        self,
        number: int,
        aggregator: type[Aggregator] | None,
        release: ReleasePolicy,
        agreement: Agreement,
        *,
        is_limited_later: bool = False,
    ) -> None:
        self.number = number
        self.agreement = agreement
        self.totals: Totals | None = None
        """What all contributions say together, if they were masked, once the step is combined."""
        self._batches = 1
        self.is_lost = False
        """Whether nothing of it counts."""
        self.unlike: dict[str, str] = {}
        """Devices of which something is unlike what the others sent, and what; as a sentence without its subject."""
        self._aggregator = aggregator
        self._release = release
        self._is_limited_later = is_limited_later
        self._most: int | None = None
        """So many samples count of each device."""
        self._claims: dict[str, int] = {}
        self.began_at: float | None = None
        self.contributions: dict[str, Contribution] = {}
        self._pending: dict[SliceKey, _Slice] = {}
        self._sent_by: dict[str, set[SliceKey]] = {}
        self._released: set[SliceKey] = set()
        self._counted: Counter[str] = Counter()
        self._completed_at: dict[str, float] = {}
        self._is_late: set[str] = set()
        """Devices of which a slice came after its result had left."""
        self._closed: dict[SliceKey, int] | None = None
        """The lengths of the slices that a rule combines, once the step is closed."""

    @property
    def batches(self) -> int:
        """Batches that each device trains in the step, once they agree on it."""
        return next((contribution.batches for contribution in self.contributions.values()), self._batches)

    def counted(self, device: str) -> int:
        """Return how many of a device's slices are in the results, whether or not it has completed its contribution."""
        return self._counted[device]

    @property
    def senders(self) -> set[str]:
        """Devices that have sent a slice."""
        return set(self._sent_by)

    @property
    def completed_at(self) -> float | None:
        """When the first of the contributions that are complete was so; None if none is."""
        return min(self._completed_at.values(), default=None)

    @property
    def late(self) -> Collection[str]:
        """Devices of which a slice came after its result had left; those that it sent then are not in the results."""
        return self._is_late

    def begin(self, now: float) -> None:
        """Note when the first contribution came."""
        if self.began_at is None:
            self.began_at = now

    def claim(self, device: str, samples: int, most: int) -> None:
        """Note how many samples a device says that it has, of which `most` count."""
        if device not in self._claims:
            self._claims[device] = samples
            self._judge(device, samples, most)

    def limit(self, most: int | None) -> None:
        """Let at most so many samples of each device count, those of what is in already too."""
        self._most = most
        if most is None:
            return
        for device, samples in self._claims.items():
            self._judge(device, samples, most)
        for device, contribution in self.contributions.items():
            known = contribution.most_samples
            self.contributions[device] = replace(contribution, most_samples=most if known is None else min(most, known))

    def has(self, device: str, key: SliceKey) -> bool:
        """Whether a device's slice is in, from this or an earlier connection."""
        return key in self._sent_by.get(device, ())

    def add(self, device: str, samples: int | None, key: SliceKey, values: Values) -> None:
        """Add one slice of a device that is not in yet; one whose result has left is dropped, and those after it.

        Without samples it counts as sent, and weighs nothing, whatever the rule: the device skips its batch.
        """
        self._sent_by.setdefault(device, set()).add(key)
        if key in self._released:
            self._is_late.add(device)
            return
        piece = self._pending.get(key)
        if piece is None:
            piece = self._pending[key] = _Slice(len(values))
        piece.contributors.add(device)
        if device in self._is_late:  # what counts of its slices is the first ones: it could not tell which others
            return
        self._counted[device] += 1
        if samples and self._aggregator is None:
            piece.held.append(Held(device, values, samples))
        elif samples and self._aggregator is not None:
            if piece.aggregator is None:
                piece.aggregator = self._aggregator(is_limited_later=self._is_limited_later)
            piece.aggregator.add(device, values, samples)

    def waited_s(self, now: float) -> dict[str, float]:
        """Return how long each device's complete contribution has waited."""
        return {device: now - since for device, since in self._completed_at.items()}

    def complete(self, device: str, contribution: Contribution, now: float) -> None:
        """Note that a device has sent everything.

        If it did already, on an earlier connection, the numbers of that time stay, as its slices do; but it updates its
        weights as it says now.
        """
        known = self.contributions.get(device, contribution)
        self.contributions[device] = replace(
            known, batches=contribution.batches, hyperparameters=contribution.hyperparameters
        )
        self._completed_at.setdefault(device, now)
        sent = self._sent_by.get(device, set())
        self.agreement.answer(device, contribution.batches, contribution.hyperparameters, sent)

    def lose(self, tensors: int, batches: int) -> None:
        """Let nothing of the step count: its contributions, masked, cannot be had.

        Args:
            tensors: of the session.
            batches: that each device has most probably trained in it, if none has contributed.

        """
        self.is_lost, self._batches = True, batches
        self.totals = Totals(0, 0.0, None, np.zeros(tensors))
        self._counted.clear()

    def withdraw(self, device: str) -> None:
        """Take back that a device has completed its contribution; of its slices those stay in that are added up."""
        self.contributions.pop(device, None)
        self._completed_at.pop(device, None)
        self.agreement.forget(device)

    def ready(self, members: Collection[str], *, is_closing: bool) -> Iterator[tuple[SliceKey, Float32Array]]:
        """Yield, once, each slice that may leave, with its result; zeros if all devices skipped their batches.

        Args:
            members: the devices that the step waits for.
            is_closing: it is complete, and about to commit.

        """
        if not members:
            return
        for key in self._ready_keys(members, is_closing=is_closing):
            self._released.add(key)
            piece = self._pending.pop(key)
            if piece.aggregator is not None:
                yield key, piece.aggregator.result(self._most)
            else:
                yield key, np.zeros(piece.length, np.float32)

    @property
    def is_closed(self) -> bool:
        """Whether a rule combines its slices: nothing goes into it any more."""
        return self._closed is not None

    def close(self, members: Collection[str]) -> Mapping[SliceKey, Sequence[Held]]:
        """Take nothing in any more; return what is to be combined, of `members` and others that have sent something.

        What is in of those whose contributions are not complete is not to count.
        """
        keys = self._ready_keys(members, is_closing=True)
        self._closed = {key: self._pending[key].length for key in keys}
        for device in self._counted.keys() - self.contributions.keys():
            self._counted[device] = 0
        most = self._most
        slices = {key: self._pending.pop(key).held for key in keys}
        if most is not None:
            slices = {key: [each._replace(samples=min(most, each.samples)) for each in slices[key]] for key in keys}
        return slices

    def combined(self, outcome: StepOutcome) -> Iterator[tuple[SliceKey, Float32Array]]:
        """Yield what the slices have become that `close` returned; zeros if all devices skipped their batches."""
        self.totals = outcome.totals
        for device, reason in outcome.unlike.items():
            self.unlike.setdefault(device, reason)
        for key, length in (self._closed or {}).items():
            yield key, outcome.values[key] if key in outcome.values else np.zeros(length, np.float32)

    def is_complete(self, members: Collection[str]) -> bool:
        """Whether all `members` have completed their contributions."""
        return all(member in self.contributions for member in members)

    def _ready_keys(self, members: Collection[str], *, is_closing: bool) -> list[SliceKey]:
        waiting = {key: piece.contributors for key, piece in self._pending.items()}
        return self._release.ready(waiting, members, is_closing=is_closing)

    def _judge(self, device: str, samples: int, most: int) -> None:
        if samples > most:
            self.unlike[device] = f"it claims {samples} samples, and counted with {most}"
