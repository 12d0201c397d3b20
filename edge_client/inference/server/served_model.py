"""One of the models that a server answers for: what runs it, and what it has done."""

from collections.abc import Callable

from edge_client.inference.batcher import Batcher, BatchReport, Serving
from edge_client.inference.recognizer import Recognizer
from edge_client.inference.statistics import Statistics

_KEPT_VERSIONS = 8
"""A device that trains serves a new version every few minutes."""


class ServedModel:
    """A model by its name, with the version that serves. Use it on one running event loop.

    Args:
        name: for clients.
        max_batch: samples in a run of the model at most.
        max_waiting: samples that wait at most.
        on_batch: told of each run.

    """

    def __init__(self, name: str, max_batch: int, max_waiting: int, on_batch: Callable[[BatchReport], None]) -> None:
        self.name = name
        self.batcher = Batcher(max_batch, max_waiting, on_batch)
        self.statistics: dict[int, Statistics] = {}
        """Of the versions that served last, by their numbers; the newest one is the last."""

    @property
    def serving(self) -> Serving | None:
        """What answers; None before the first version came."""
        return self.batcher.serving

    def swap(self, recognizer: Recognizer, version: int) -> None:
        """Let a version serve from the next run on. One that served before goes on with its statistics."""
        statistics = self.statistics.pop(version, None) or Statistics()
        self.statistics[version] = statistics
        for old in list(self.statistics)[:-_KEPT_VERSIONS]:
            del self.statistics[old]
        self.batcher.serving = Serving(version, recognizer, statistics)
