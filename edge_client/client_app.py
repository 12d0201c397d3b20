"""Flower's ClientApp: one message trains many batches through the coordinator.

A ClientApp's process may end after each message. Where a daemon lives on the device, it trains and keeps the
optimizer's state, and the ClientApp only asks it, over the socket that the node's config or the environment names.
Without one the ClientApp trains in its own process, and the state travels in the context that Flower keeps for the
node. The certificate that it shows to the coordinator is then that of the node's config, or of the environment.
"""

import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Protocol

from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from edge_client import jobs
from edge_client.daemon.client import DaemonClient, DaemonError
from edge_client.daemon.config import SOCKET_VARIABLE, TLS_VARIABLE
from edge_client.device_state import DeviceState
from edge_client.exchange import Evaluation, ExchangeError, TlsFiles
from edge_client.jobs import DeviceData, TrainJob, Weights
from edge_client.settings import SettingsError, TrainSettings, check_settings
from edge_client.tasks import TaskError
from edge_client.trainer import TrainingReport

log = logging.getLogger(__name__)

app = ClientApp()


_ERROR_CODE = 1
_RETURN_DEADLINE_S = 60.0
"""A daemon that dies may come back within so many seconds, and its training goes on."""
_STATE_KEY = "state"

Handler = Callable[[Message, Context], Message]


def _explain_failures(handler: Handler) -> Handler:
    """Answer a failure that a person can mend with its sentence instead of a stack trace."""

    @wraps(handler)
    def answer(message: Message, context: Context) -> Message:
        try:
            return handler(message, context)
        except (DaemonError, ExchangeError, SettingsError, TaskError, ValueError) as error:
            log.error("%s", error)
            return Message(Error(_ERROR_CODE, str(error)), reply_to=message)

    return answer


class Worker(Protocol):
    """Who does the work: the daemon, or this process."""

    def initial_weights(self, settings: TrainSettings) -> Weights:
        """Return the weights that a run begins with."""

    def train(self, job: TrainJob) -> tuple[TrainingReport, Weights]:
        """Train a job's steps; return the report and the weights."""

    def evaluate(self, data: DeviceData, weights: Weights) -> Evaluation:
        """Try weights on the device's held-out samples."""


class OwnProcess:
    """Trains in this process, and keeps the optimizer's state in Flower's context."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def initial_weights(self, settings: TrainSettings) -> Weights:
        """Return the weights that a run begins with."""
        return jobs.initial_weights(settings)

    def train(self, job: TrainJob) -> tuple[TrainingReport, Weights]:
        """Train a job's steps; return the report and the weights."""
        records = self._context.state.config_records
        kept = records.get(_STATE_KEY)
        saved = DeviceState.parse(bytes(kept["state"])) if kept is not None else None  # type: ignore[arg-type]
        outcome = jobs.train(job, saved, tls=_tls(self._context))
        self._context.state[_STATE_KEY] = ConfigRecord({"state": outcome.state.dump()})
        return outcome.report, outcome.state.model

    def evaluate(self, data: DeviceData, weights: Weights) -> Evaluation:
        """Try weights on the device's held-out samples."""
        return jobs.evaluate_weights(data, weights)


@contextmanager
def _worker(context: Context) -> Iterator[Worker]:
    socket = str(context.node_config.get("daemon-socket", os.environ.get(SOCKET_VARIABLE, "")))
    if not socket:
        yield OwnProcess(context)
        return
    with DaemonClient(Path(socket), _RETURN_DEADLINE_S) as daemon:
        yield daemon


@app.query()
@_explain_failures
def query(message: Message, context: Context) -> Message:
    """Check the settings and answer the initial weights."""
    with _worker(context) as worker:
        weights = worker.initial_weights(_settings(message))
    return Message(RecordDict({"arrays": ArrayRecord(weights)}), reply_to=message)


@app.train()
@_explain_failures
def train(message: Message, context: Context) -> Message:
    """Train a round's batches in step with the other devices."""
    config = message.content.config_records["config"]
    data = _data(message, context)
    job = TrainJob(
        data=data,
        coordinator=str(config["coordinator"]),
        session=str(config["session"]),
        device=str(context.node_config.get("device", "")),
        first_step=int(config["first-step"]),  # type: ignore[arg-type]
        steps=int(config["steps"]),  # type: ignore[arg-type]
        weights=_weights(message),
    )
    with _worker(context) as worker:
        report, weights = worker.train(job)
    metrics = MetricRecord(
        {
            "num-examples": report.samples,
            "loss": report.loss,
            "bytes-sent": report.bytes_sent,
            "bytes-received": report.bytes_received,
            "seconds": report.seconds,
        }
    )
    content = RecordDict(
        {
            "arrays": ArrayRecord(weights),
            "metrics": metrics,
            "report": ConfigRecord({"step": report.step, "weights-digest": report.weights_digest}),
        }
    )
    return Message(content, reply_to=message)


@app.evaluate()
@_explain_failures
def evaluate_model(message: Message, context: Context) -> Message:
    """Try the model on this device's held-out samples."""
    with _worker(context) as worker:
        result = worker.evaluate(_data(message, context), _weights(message))
    metrics = MetricRecord(
        {"num-examples": result.samples, "accuracy": result.correct / result.samples, "loss": result.loss}
    )
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


def _weights(message: Message) -> Weights:
    return dict(message.content.array_records["arrays"].to_torch_state_dict())


def _data(message: Message, context: Context) -> DeviceData:
    return DeviceData(_settings(message), *_partition(context))


def _settings(message: Message) -> TrainSettings:
    text = message.content.config_records["config"]["settings"]
    return check_settings(json.loads(str(text)))


def _tls(context: Context) -> TlsFiles | None:
    text = str(context.node_config.get("tls", os.environ.get(TLS_VARIABLE, "")))
    return TlsFiles.parse(text) if text else None


def _partition(context: Context) -> tuple[int, int]:
    config = context.node_config
    try:
        return int(config["partition-id"]), int(config["num-partitions"])
    except KeyError as error:
        raise SettingsError(
            f"the node's config lacks {error}; start it with --node-config 'partition-id=0 num-partitions=4'"
        ) from None
