"""How many batches the devices train between two exchanges, and in which form they send their moves.

Both are chosen from what the devices measure. With H batches between two exchanges, c seconds for a batch and x for an
exchange, a batch takes c + x / H seconds. But the more batches, the farther the devices drift apart, and the more are
needed: 1 + a (H - 1) times as many, where a grows with how little the devices' moves agree. The product is smallest for
H = sqrt((1 - a) x / (a c)). A form of fewer bytes makes x smaller, and needs more batches by a factor of its own.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from edgenewton.v1.forms import Form

from coordinator.session.exchange_time import ExchangeTime
from coordinator.session.running_mean import RunningMean

CHOICES = (1, 2, 3, 5, 7, 10, 15, 20, 30, 40)
_WORTH_IT = 0.9
"""Another cadence is chosen only if it is expected to take less than this part of the time: exchanges waver."""
_FORM_WORTH_IT = 0.8
"""The same for another form, against the best cadence in the present one: what it will cost is known less well."""
FIRST = 10
"""Batches before anything is measured: fewer would spend slow exchanges on little."""
FIRST_FORM = Form.INT4
"""What devices write in until they are told otherwise."""
_BATCHES_NEEDED = {Form.INT4: 1.0, Form.SPARSE1: 1.6}
"""To the same accuracy. Measured on three tasks."""
_DRIFT = 0.1
"""What a is where the devices' moves are unrelated. Measured: 20 batches need 1.3 to 2.2 times as many as 5 do."""
_LEAST_DRIFT = 0.02


@dataclass(frozen=True)
class Pace:
    """What a device measures; seconds."""

    batch_s: float
    exchange_s: float
    round_s: float
    agreement: float
    form: Form | None = None
    """Of the moves in the contribution that it comes with, if the device says it."""
    round_trip_s: float = 0.0
    """What a message of a few bytes takes to the coordinator and back."""

    @property
    def is_sound(self) -> bool:
        """Whether the numbers are possible."""
        seconds = (self.batch_s, self.exchange_s, self.round_s, self.round_trip_s)
        return all(math.isfinite(s) and 0 <= s < 1e6 for s in seconds) and 0 <= self.agreement <= 1e6


@dataclass(frozen=True)
class Cadence:
    """What is decided."""

    batches: int
    """Of each device until the next exchange."""
    reason: str
    """In a sentence."""
    form: Form | None = None
    """Of the moves in it; None where there is no choice."""


class CadenceChoice:
    """Chooses for a session, once for each step.

    Args:
        sizes: bytes of an exchange with each form of the moves; empty where there is no choice of one.

    """

    def __init__(self, sizes: Mapping[Form, int] | None = None) -> None:
        self._sizes = sizes or {}
        self._waited_s: dict[str, float] = {}
        """How long each device's last contribution waited here for the others."""
        self._forms: dict[str, Form] = {}
        """Of each device's last contribution: what a pace tells of is the exchange before it."""
        self._batch_s = RunningMean()
        self._exchange = ExchangeTime(self._sizes)
        self._disagreement = RunningMean()

    def choose(
        self, batches: int, paces: Mapping[str, Pace], waited_s: Mapping[str, float], form: Form | None = None
    ) -> Cadence:
        """Return the cadence of the next step.

        Args:
            batches: of the step that commits now.
            paces: what its devices measured.
            waited_s: how long their contributions to it waited for the others.
            form: of the moves in it; None for what the devices say.

        """
        form = self._form_of(paces, form)
        before, self._waited_s = self._waited_s, dict(waited_s)
        forms, self._forms = self._forms, {d: pace.form for d, pace in paces.items() if pace.form is not None}
        sound = {device: pace for device, pace in paces.items() if pace.is_sound}
        links = {d: max(0.0, p.exchange_s - before[d]) + p.round_s for d, p in sound.items() if d in before}
        if not links:
            return Cadence(batches, "nothing is measured yet", form)
        slowest = max(links, key=lambda device: links[device])
        measured = None if form is None else forms.get(slowest, form)
        fixed_s = sound[slowest].round_s + sound[slowest].round_trip_s
        self._exchange.measure(measured, links[slowest], fixed_s)
        self._batch_s.add(max(pace.batch_s for pace in sound.values()))
        agreements = [min(1.0, pace.agreement) for device, pace in sound.items() if device in links]
        # What few elements have in common says little of the moves that they are of.
        if measured is not Form.SPARSE1 or not self._disagreement.count:
            self._disagreement.add(1 - sum(agreements) / len(agreements))
        batches, form = self._best(batches, form, measured)
        exchange = _text(self._exchange.seconds(measured))
        in_form = "" if measured is None else f" in {measured}"
        return Cadence(
            batches,
            f"a batch takes {_text(self._batch_s.value)}, an exchange{in_form} {exchange} (slowest: {slowest!r})"
            f"{self._others(measured)}, and the devices' moves disagree by {self._disagreement.value:.0%}",
            form,
        )

    def _form_of(self, paces: Mapping[str, Pace], form: Form | None) -> Form | None:
        if not self._sizes:
            return None
        told = (paces[device].form for device in sorted(paces))
        return form or next((said for said in told if said is not None), FIRST_FORM)

    def _best(self, batches: int, form: Form | None, measured: Form | None) -> tuple[int, Form | None]:
        """Return the best batches in the present form; or in another one if it is that much better."""
        best = self._best_batches(form)
        if measured is form and self._exchange.is_settled:
            for other in self._sizes:
                there = self._best_batches(other)
                if self._seconds_of(there, other) < _FORM_WORTH_IT * self._seconds_of(best, form):
                    return there, other
        if self._seconds_of(best, form) > _WORTH_IT * self._seconds_of(batches, form):
            best = batches
        return best, form

    def _best_batches(self, form: Form | None) -> int:
        return min(CHOICES, key=lambda batches: self._seconds_of(batches, form))

    def _others(self, measured: Form | None) -> str:
        """Return what an exchange is expected to take in the other forms."""
        others = [other for other in self._sizes if other is not measured]
        return "".join(f", in {other} it would take {_text(self._exchange.seconds(other))}" for other in others)

    def _seconds_of(self, batches: int, form: Form | None) -> float:
        """Return what training is expected to take, up to a factor."""
        drift = max(_LEAST_DRIFT, _DRIFT * self._disagreement.value)
        needed = 1.0 if form is None else _BATCHES_NEEDED[form]
        return needed * (1 + drift * (batches - 1)) * (self._batch_s.value + self._exchange.seconds(form) / batches)


def _text(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds >= 1 else f"{1000 * seconds:.2g} ms"
