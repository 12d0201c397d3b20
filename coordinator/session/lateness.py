"""How long steps go on without a device that was late again and again: longer each time, as it would be in a backoff.

Being late once costs a device nothing. From the second time on no step waits for it for one, two, four, ... deadlines,
at most 64. Good behaviour for 16 deadlines takes back one time. So whoever begins steps and ends none holds the others
up for at most one part in 17 of the time in the long run, whatever it does between.
"""

from collections.abc import Iterable
from dataclasses import dataclass

MAX_DEADLINES = 64
"""So many deadlines steps go on without a device at most."""
REGAIN_DEADLINES = 16
"""In time for so many deadlines, a device has been late one time less."""
_MAX_TIMES = MAX_DEADLINES.bit_length() + 1
"""From then on it waits the longest time."""
MAX_KNOWN = 10_000
"""So many devices that were late are remembered."""


@dataclass
class _Record:
    times: int = 0
    until: float = 0.0
    """Steps go on without it so long."""
    good_since: float | None = None


class Lateness:
    """Counts how often devices were late.

    Args:
        deadline_s: seconds that a step waits for a device.

    """

    def __init__(self, deadline_s: float) -> None:
        self._deadline_s = deadline_s
        self._of: dict[str, _Record] = {}

    def be_late(self, device: str, now: float) -> float:
        """Note that a step was committed without a device; return for how many seconds no step waits for it now."""
        record = self._of.pop(device, None) or _Record()
        self._of[device] = record
        record.times = min(record.times + 1, _MAX_TIMES)
        record.good_since = None
        wait_s = self._wait_s(record.times)
        record.until = now + wait_s
        if len(self._of) > MAX_KNOWN:
            del self._of[next(iter(self._of))]
        return wait_s

    def be_in_time(self, devices: Iterable[str], now: float) -> None:
        """Note that devices which a step waited for were in time."""
        for device in self._of.keys() & set(devices):
            record = self._of[device]
            if record.good_since is None:
                record.good_since = now
            elif now >= record.good_since + REGAIN_DEADLINES * self._deadline_s:
                record.times -= 1
                record.good_since = now
                if not record.times:
                    del self._of[device]

    def times(self, device: str) -> int:
        """Return how often a device was late of late."""
        record = self._of.get(device)
        return 0 if record is None else record.times

    def has_to_wait(self, device: str, now: float) -> bool:
        """Whether steps go on without a device, even if it begins them in time."""
        record = self._of.get(device)
        return record is not None and now < record.until

    def _wait_s(self, times: int) -> float:
        if times < 2:
            return 0.0
        return self._deadline_s * min(MAX_DEADLINES, 1 << (times - 2))
