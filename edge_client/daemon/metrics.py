"""Metrics of training, for Prometheus, beside those of recognition."""

import math

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from edge_client.training.work import TrainedStep

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0)


class TrainingMetrics:
    """What is measured of the trainings of a device."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._is_on = Gauge("edgenewton_training", "1 while this device trains", registry=registry)
        self._steps = Counter("edgenewton_training_steps", "Steps that this device took", registry=registry)
        self._loss = Gauge(
            "edgenewton_training_loss",
            "Mean loss over the batches of all devices in the last exchange",
            registry=registry,
        )
        self._epsilon = Gauge(
            "edgenewton_training_epsilon",
            "What this device's data have cost of its privacy budget; 0 without one",
            registry=registry,
        )
        self._devices = Gauge("edgenewton_training_devices", "Devices behind the last step", registry=registry)
        self._exchange = Histogram(
            "edgenewton_training_exchange_seconds",
            "Time that a step waited for the other devices",
            buckets=_SECONDS,
            registry=registry,
        )
        self._curvature = Histogram(
            "edgenewton_training_curvature_seconds",
            "Time that a step took to update and invert the curvature",
            buckets=_SECONDS,
            registry=registry,
        )
        self._bytes = Counter(
            "edgenewton_training_bytes", "Bytes exchanged with the coordinator", ["direction"], registry=registry
        )
        self._failures = Counter("edgenewton_training_failures", "Trainings that failed", registry=registry)
        self._counted = (0, 0)

    def end(self, *, has_failed: bool) -> None:
        """Note that a training is over."""
        self._is_on.set(0)
        self._counted = (0, 0)
        if has_failed:
            self._failures.inc()

    def observe(self, step: TrainedStep) -> None:
        """Count a step."""
        self._is_on.set(1)
        self._steps.inc()
        self._devices.set(step.devices)
        if math.isfinite(step.session_loss):
            self._loss.set(step.session_loss)
        self._epsilon.set(step.epsilon or 0.0)
        self._exchange.observe(step.exchange_s)
        self._curvature.observe(step.curvature_s)
        sent, received = self._counted
        self._bytes.labels("sent").inc(max(0, step.bytes_sent - sent))
        self._bytes.labels("received").inc(max(0, step.bytes_received - received))
        self._counted = (step.bytes_sent, step.bytes_received)
