"""The coordinator's metrics, for Prometheus; read from the sessions' statistics when they are asked for."""

import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from typing import Protocol

from edgenewton.v1.forms import Form
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, InfoMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from coordinator.session.decisions import Phase
from coordinator.session.members import Standing
from coordinator.session.refusal import RefusalLog, Status
from coordinator.session.session import Session
from coordinator.telemetry.chronicle import Chronicle
from coordinator.telemetry.statistics import STEP_SECONDS, SessionStatistics
from coordinator.telemetry.waiting import waiting

_PREFIX = "edgenewton_coordinator_"


class WatchedSession(Protocol):
    """A session, and its chronicle."""

    @property
    def session(self) -> Session:
        """The session."""

    @property
    def chronicle(self) -> Chronicle:
        """What is known of it."""


class WatchedCoordinator(Protocol):
    """Whatever has the sessions of a coordinator."""

    @property
    def rooms(self) -> Sequence[WatchedSession]:
        """The sessions, the oldest first."""

    @property
    def refusals(self) -> RefusalLog:
        """The requests that it refused."""


def make_registry(coordinator: WatchedCoordinator) -> CollectorRegistry:
    """Return a registry with the metrics of a coordinator and of this process."""
    registry = CollectorRegistry()
    registry.register(SessionsCollector(coordinator))
    ProcessCollector(registry=registry)
    return registry


class SessionsCollector(Collector):
    """Metrics of a coordinator's sessions. Those of a session go with it, so that their number is bounded."""

    def __init__(self, coordinator: WatchedCoordinator) -> None:
        self._coordinator = coordinator

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics as they are now."""
        yield InfoMetricFamily("edgenewton_coordinator", "The release", {"version": version("edgenewton")})
        refusals = CounterMetricFamily(_PREFIX + "refusals", "Requests that were refused, by status", labels=["status"])
        for status in Status:
            if status is not Status.OK:
                refusals.add_metric([status.name], self._coordinator.refusals.counts[status])
        yield refusals
        rooms = self._coordinator.rooms
        yield from _sessions(rooms)
        yield from _bytes(rooms)
        yield from _devices(rooms)


def _sessions(rooms: Sequence[WatchedSession]) -> Iterator[Metric]:
    labels = ["session"]
    phase = GaugeMetricFamily(_PREFIX + "phase", "1 for the phase that a session is in", labels=["session", "phase"])
    steps = CounterMetricFamily(_PREFIX + "steps", "Steps that were committed", labels=labels)
    seconds = HistogramMetricFamily(_PREFIX + "step_seconds", "From a step's first frame to its commit", labels=labels)
    samples = CounterMetricFamily(_PREFIX + "samples", "Samples behind the committed steps", labels=labels)
    left_out = CounterMetricFamily(_PREFIX + "left_out", "Contributions that came too late for a step", labels=labels)
    set_aside = CounterMetricFamily(
        _PREFIX + "set_aside", "Times that steps were to go on without a device, which was late again", labels=labels
    )
    skipped = CounterMetricFamily(_PREFIX + "skipped", "Batches that devices skipped as unusable", labels=labels)
    step = GaugeMetricFamily(_PREFIX + "step", "Number of the last committed step", labels=labels)
    every = GaugeMetricFamily(_PREFIX + "batches_per_step", "Batches of each device in the last step", labels=labels)
    form = GaugeMetricFamily(
        _PREFIX + "move_form", "1 for the form that a session has chosen for moves", labels=["session", "form"]
    )
    loss = GaugeMetricFamily(_PREFIX + "loss", "Mean loss over the batches of the last step", labels=labels)
    accuracy = GaugeMetricFamily(_PREFIX + "accuracy", "Part of the held-out samples recognised", labels=labels)
    best = GaugeMetricFamily(_PREFIX + "best_accuracy", "The best accuracy of all steps", labels=labels)
    run = GaugeMetricFamily(_PREFIX + "run_steps", "Steps of the whole run, as the devices say", labels=labels)
    pace = GaugeMetricFamily(_PREFIX + "batches_per_second", "Of each device, over the last minute", labels=labels)
    epsilon = GaugeMetricFamily(_PREFIX + "epsilon", "Spent of the privacy budget, as the devices say", labels=labels)
    budget = GaugeMetricFamily(_PREFIX + "epsilon_budget", "Epsilon that may be spent in the run", labels=labels)
    delta = GaugeMetricFamily(_PREFIX + "delta", "Probability that the privacy budget does not hold", labels=labels)
    for room in rooms:
        statistics, name = room.chronicle.statistics, [room.session.name]
        for known in Phase:
            phase.add_metric([*name, known.value], room.session.phase is known)
        steps.add_metric(name, statistics.steps)
        seconds.add_metric(name, _buckets(statistics), statistics.step_seconds)
        samples.add_metric(name, statistics.samples)
        left_out.add_metric(name, statistics.left_out)
        set_aside.add_metric(name, statistics.set_aside)
        skipped.add_metric(name, statistics.skipped)
        curves = statistics.curves
        every.add_metric(name, statistics.every)
        for chosen in Form if statistics.form else ():
            form.add_metric([*name, chosen], statistics.form == chosen)
        values = (
            (step, statistics.step),
            (loss, curves.loss.last),
            (accuracy, curves.accuracy.last),
            (best, None if statistics.best is None else statistics.best.accuracy),
            (run, statistics.run_steps),
            (pace, statistics.batches_per_s(time.time()) or 0.0),
            (epsilon, statistics.epsilon),
            (budget, None if statistics.budget is None else statistics.budget.epsilon),
            (delta, None if statistics.budget is None else statistics.budget.delta),
        )
        for gauge, value in values:
            if value is not None:
                gauge.add_metric(name, value)
    yield from (phase, steps, seconds, samples, left_out, set_aside, skipped)
    yield from (step, every, form, loss, accuracy, best, run, pace, epsilon, budget, delta)


def _bytes(rooms: Sequence[WatchedSession]) -> Iterator[Metric]:
    labels = ["session", "direction", "codec"]
    exchanged = CounterMetricFamily(_PREFIX + "bytes", "Bytes exchanged with devices", labels=labels)
    saved = CounterMetricFamily(
        _PREFIX + "saved_bytes", "Bytes that the codec saved, against float32", labels=["session", "codec"]
    )
    for room in rooms:
        statistics, name, codec = room.chronicle.statistics, room.session.name, room.session.settings.codec
        exchanged.add_metric([name, "received", codec], statistics.received)
        exchanged.add_metric([name, "sent", codec], statistics.sent)
        saved.add_metric([name, codec], max(0, statistics.saved))
    yield from (exchanged, saved)


def _devices(rooms: Sequence[WatchedSession]) -> Iterator[Metric]:
    standing = GaugeMetricFamily(_PREFIX + "devices", "Devices with a place", labels=["session", "standing"])
    labels = ["session", "device"]
    lag = GaugeMetricFamily(_PREFIX + "device_lag_seconds", "Behind the first device of its last step", labels=labels)
    exchanged = CounterMetricFamily(
        _PREFIX + "device_bytes", "Bytes exchanged with a device", labels=[*labels, "direction"]
    )
    aside = GaugeMetricFamily(_PREFIX + "device_set_aside_seconds", "Until steps wait for it again", labels=labels)
    awaited = GaugeMetricFamily(_PREFIX + "device_awaited_seconds", "For which the session waits for it", labels=labels)
    now, clock = time.time(), time.monotonic()
    for room in rooms:
        name, members = room.session.name, room.session.members
        wait = waiting(room.session, room.chronicle.statistics, now, clock)
        for known in Standing:
            standing.add_metric([name, known.name.lower()], len(members.standing(known)))
        for device in members:
            device_statistics = room.chronicle.statistics.devices.get(device)
            if device_statistics is not None:
                lag.add_metric([name, device], device_statistics.lag_s)
                aside.add_metric([name, device], device_statistics.set_aside_s(now))
                awaited_s = wait.seconds if wait is not None and device in wait.devices else None
                awaited.add_metric([name, device], awaited_s or 0.0)
                exchanged.add_metric([name, device, "received"], device_statistics.received)
                exchanged.add_metric([name, device, "sent"], device_statistics.sent)
    yield from (standing, lag, awaited, aside, exchanged)


def _buckets(statistics: SessionStatistics) -> list[tuple[str, float]]:
    buckets, total = [], 0
    for bound, count in zip((*STEP_SECONDS, float("inf")), statistics.step_buckets, strict=True):
        total += count
        buckets.append(("+Inf" if bound == float("inf") else str(bound), float(total)))
    return buckets
