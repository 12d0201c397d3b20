"""What a run gave, and its record on disk."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from benchmarks.links.configuration import Configuration
from benchmarks.shared.record_store import RecordStore, options_text

End = Literal["reached", "budget", "time", "diverged", "failed"]
Key = tuple[str, str, str, str, int]


@dataclass(frozen=True)
class Run:
    """One training of real processes, until the model that all share reached the target, or it was given up."""

    task: str
    links: str
    method: str
    options: Mapping[str, float]
    codec: str
    seed: int
    end: End
    limit_s: float
    """Seconds after which it would have been given up."""
    budget: int
    """Batches of each device after which it would have been given up."""
    seconds: float
    """From the moment when all devices were ready to join; to the exchange with which it ended."""
    processor_s: float
    """Of the first device, in that time: on a machine that is busy with something else it stays as it is."""
    batches: int
    """Of each device."""
    exchanges: int
    bytes: float
    """Of the first device, each way: the mean of both directions."""
    best: float | None
    """The best value of the metric."""
    problem: str = ""
    """Why it failed."""

    @property
    def is_reached(self) -> bool:
        """Whether it reached the target."""
        return self.end == "reached"

    @property
    def cost(self) -> float:
        """Seconds to the target; infinite if it was not reached."""
        return self.seconds if self.is_reached else math.inf

    @property
    def key(self) -> Key:
        """What identifies it."""
        return key_of(self.task, self.links, Configuration(self.method, self.options), self.seed)


def key_of(task: str, links: str, what: Configuration, seed: int) -> Key:
    """Return what identifies a run."""
    return task, links, what.method, options_text(what.options), seed


class RunStore(RecordStore[Run]):
    """Runs on disk."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, Run)

    def find(self, key: Key) -> Run | None:
        """Return a run, if it is kept. One that failed is run anew."""
        run = self.get(key)
        return None if run is None or run.end == "failed" else run


def fastest(runs: Iterable[Run]) -> float:
    """Return the seconds of the run that was first at the target; infinite where none was."""
    return min((run.cost for run in runs), default=math.inf)
