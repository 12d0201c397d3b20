"""The links that devices are behind."""

from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.convergence.learning_tasks import DEVICES


@dataclass(frozen=True)
class Link:
    """A device's way to the coordinator, the same in both directions."""

    mbit_s: float
    round_trip_ms: float

    @property
    def bit_s(self) -> float:
        """Bits in a second, each way."""
        return 1e6 * self.mbit_s

    @property
    def round_trip_s(self) -> float:
        """Seconds that a bit takes there and back, beside what the rate takes."""
        return self.round_trip_ms / 1000


Links = tuple[Link, ...]
"""One for each device."""


def _even(mbit_s: float, round_trip_ms: float) -> Links:
    return (Link(mbit_s, round_trip_ms),) * DEVICES


LINKS: Mapping[str, Links] = {
    "1 Mbit/s, 50 ms": _even(1, 50),
    "5 Mbit/s, 20 ms": _even(5, 20),
    "10 Mbit/s, 20 ms": _even(10, 20),
    "100 Mbit/s, 5 ms": _even(100, 5),
    "1 to 100 Mbit/s": (Link(1, 50), Link(5, 20), Link(10, 20), Link(100, 5)),
}
"""By name. A round trip takes so long without any load; in the last every device has a link of its own."""


def file_name(links: str) -> str:
    """Return a name of links as the name of a file."""
    return links.replace("/s", "").replace(", ", "-").replace(" ", "-")
