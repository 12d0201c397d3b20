"""Metrics of recognition, for Prometheus."""

import time
from types import TracebackType

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from edge_client.inference.batcher import BatchReport
from edge_client.inference.errors import NotFiniteError
from edge_client.tasks.errors import SampleError

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
_SAMPLES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """What is measured of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "edgenewton_requests",
            "Requests for recognition, by their outcome",
            ["api", "outcome"],
            registry=self.registry,
        )
        self._request_seconds = Histogram(
            "edgenewton_request_seconds",
            "Time from a request's arrival to its answer",
            ["api"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._known: dict[tuple[str, str], tuple[Counter, Histogram]] = {}
        """Of each API and outcome: to look labels up costs more than to count."""
        self._batch_samples = Histogram(
            "edgenewton_batch_samples", "Samples in a run of the model", buckets=_SAMPLES, registry=self.registry
        )
        self._batch_seconds = Histogram(
            "edgenewton_batch_seconds", "Time that a run of the model took", buckets=_SECONDS, registry=self.registry
        )
        self.waiting = Gauge("edgenewton_waiting_samples", "Samples that wait for the model", registry=self.registry)
        self.memory = Gauge(
            "edgenewton_request_bytes", "Memory counted for the requests that are answered", registry=self.registry
        )
        self._version = Gauge("edgenewton_model_version", "Version that serves", registry=self.registry)
        self._step = Gauge("edgenewton_model_step", "Training steps behind that version", registry=self.registry)
        self._swaps = Counter(
            "edgenewton_model_swaps", "Times that another version came to serve", registry=self.registry
        )

    def observe_batch(self, report: BatchReport) -> None:
        """Count a run of the model."""
        self._batch_samples.observe(report.samples)
        self._batch_seconds.observe(report.seconds)

    def observe_swap(self, version: int, step: int) -> None:
        """Note which version serves from now on."""
        self._version.set(version)
        self._step.set(step)
        self._swaps.inc()

    def request(self, api: str) -> "TimedRequest":
        """Return what counts and times the request that is answered inside `with`."""
        return TimedRequest(self, api)

    def observe_request(self, api: str, outcome: str, seconds: float) -> None:
        """Count a request."""
        counter, histogram = self._request_metrics(api, outcome)
        counter.inc()
        histogram.observe(seconds)

    def to_text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self.registry)

    def _request_metrics(self, api: str, outcome: str) -> tuple[Counter, Histogram]:
        found = self._known.get((api, outcome))
        if found is None:
            found = self._requests.labels(api, outcome), self._request_seconds.labels(api)
            self._known[api, outcome] = found
        return found


class TimedRequest:
    """A request that is being answered; see `Metrics.request`."""

    __slots__ = ("_api", "_began", "_metrics")

    def __init__(self, metrics: Metrics, api: str) -> None:
        self._metrics = metrics
        self._api = api

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        outcome = "answered" if kind is None else _outcome(error)
        self._metrics.observe_request(self._api, outcome, time.perf_counter() - self._began)


def _outcome(error: BaseException | None) -> str:
    if isinstance(error, NotFiniteError):
        return "not_finite"
    if isinstance(error, SampleError):
        return "bad_request"
    return _OUTCOMES.get(type(error).__name__, "failed")


_OUTCOMES = {
    "BadRequestError": "bad_request",
    "UnknownModelError": "unknown_model",
    "TooLargeError": "too_large",
    "OverloadedError": "overloaded",
    "DeadlineError": "too_late",
    "UnavailableError": "unavailable",
}
