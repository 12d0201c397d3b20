"""How many batches the devices train between two exchanges, chosen from what they measure.

With H batches between two exchanges, c seconds for a batch and x for an exchange, a batch takes c + x / H seconds. But
the more batches, the farther the devices drift apart, and the more are needed: 1 + a (H - 1) times as many, where a
grows with how little the devices' moves agree. The product is smallest for H = sqrt((1 - a) x / (a c)).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

CHOICES = (1, 2, 3, 5, 7, 10, 15, 20, 30, 40)
_WORTH_IT = 0.9
"""Another cadence is chosen only if it is expected to take less than this part of the time: exchanges waver."""
FIRST = 5
"""Batches before anything is measured: fewer would spend slow exchanges on little."""
_DRIFT = 0.1
"""What a is where the devices' moves are unrelated. Measured: 20 batches need 1.3 to 2.2 times as many as 5 do."""
_LEAST_DRIFT = 0.02
_WEIGHT = 0.5
"""Of the newest measurement in the running means."""


@dataclass(frozen=True)
class Pace:
    """What a device measures; seconds."""

    batch_s: float
    exchange_s: float
    round_s: float
    agreement: float

    @property
    def is_sound(self) -> bool:
        """Whether the numbers are possible."""
        seconds = (self.batch_s, self.exchange_s, self.round_s)
        return all(math.isfinite(s) and 0 <= s < 1e6 for s in seconds) and 0 <= self.agreement <= 1e6


@dataclass(frozen=True)
class Cadence:
    """What is decided."""

    batches: int
    """Of each device until the next exchange."""
    reason: str
    """In a sentence."""


class CadenceChoice:
    """Chooses for a session, once for each step."""

    def __init__(self) -> None:
        self._waited_s: dict[str, float] = {}
        """How long each device's last contribution waited here for the others."""
        self._batch_s: float | None = None
        self._exchange_s: float | None = None
        self._disagreement: float | None = None

    def choose(self, batches: int, paces: Mapping[str, Pace], waited_s: Mapping[str, float]) -> Cadence:
        """Return the cadence of the next step.

        Args:
            batches: of the step that commits now.
            paces: what its devices measured.
            waited_s: how long their contributions to it waited for the others.

        """
        before, self._waited_s = self._waited_s, dict(waited_s)
        sound = {device: pace for device, pace in paces.items() if pace.is_sound}
        links = {d: max(0.0, p.exchange_s - before[d]) + p.round_s for d, p in sound.items() if d in before}
        if not links:
            return Cadence(batches, "nothing is measured yet")
        slowest = max(links, key=lambda device: links[device])
        self._exchange_s = _running(self._exchange_s, links[slowest])
        self._batch_s = _running(self._batch_s, max(pace.batch_s for pace in sound.values()))
        agreements = [min(1.0, pace.agreement) for device, pace in sound.items() if device in links]
        self._disagreement = _running(self._disagreement, 1 - sum(agreements) / len(agreements))
        best = min(CHOICES, key=self._seconds_of)
        if self._seconds_of(best) > _WORTH_IT * self._seconds_of(batches):
            best = batches
        return Cadence(
            best,
            f"a batch takes {_text(self._batch_s)}, an exchange {_text(self._exchange_s)} (slowest: {slowest!r}), "
            f"and the devices' moves disagree by {self._disagreement:.0%}",
        )

    def _seconds_of(self, batches: int) -> float:
        """Return what training is expected to take, up to a factor."""
        assert self._batch_s is not None
        assert self._exchange_s is not None
        assert self._disagreement is not None
        drift = max(_LEAST_DRIFT, _DRIFT * self._disagreement)
        return (1 + drift * (batches - 1)) * (self._batch_s + self._exchange_s / batches)


def _running(mean: float | None, value: float) -> float:
    return value if mean is None else mean + _WEIGHT * (value - mean)


def _text(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds >= 1 else f"{1000 * seconds:.2g} ms"
