"""Flower's ClientApp: one message trains many batches through the coordinator.

A ClientApp's process may end after each message. Where a daemon lives on the device, it trains and keeps the
optimizer's state, and the ClientApp only asks it, over the socket that the node's config or the environment names; it
does not even load PyTorch. Without a daemon the ClientApp trains in its own process, and the state travels in the
context that Flower keeps for the node. The certificate that it shows to the coordinator is then that of the node's
config, or of the environment.
"""

import json
import logging
import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgenewton.common.tls import TlsFiles
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as dump_arrays

from edge_client.daemon.client import DaemonClient
from edge_client.daemon.environment import ALLOW_VARIABLE, SOCKET_VARIABLE, TLS_VARIABLE
from edge_client.training.work import DataRequest, TrainRequest, Worker, WorkError

if TYPE_CHECKING:
    from edge_client.training.publishing import Publishing

log = logging.getLogger(__name__)


_ERROR_CODE = 1
_STATE_KEY = "state"
_RETURN_DEADLINE_S = 60.0
"""A daemon that dies may come back within so many seconds, and its training goes on."""

Handler = Callable[[Message, Context, Collection[str]], Message]


def _explain_failures(handler: Handler) -> Handler:
    """Answer a failure that a person can mend with its sentence instead of a stack trace."""

    @wraps(handler)
    def answer(message: Message, context: Context, allow_tasks: Collection[str] = ()) -> Message:
        try:
            return handler(message, context, allow_tasks)
        except (WorkError, ValueError) as error:
            log.error("%s", error)
            return Message(Error(_ERROR_CODE, str(error)), reply_to=message)

    return answer


class _NodeState:
    """Keeps the device's state in what Flower keeps for the node; see `StateKeeper`."""

    def __init__(self, records: RecordDict) -> None:
        self._records = records

    def load(self) -> bytes | None:
        record = self._records.config_records.get(_STATE_KEY)
        return bytes(record["state"]) if record is not None else None  # type: ignore[arg-type]

    def save(self, state: bytes) -> None:
        self._records[_STATE_KEY] = ConfigRecord({"state": state})


@contextmanager
def _worker(context: Context, allow_tasks: Collection[str]) -> Iterator[Worker]:
    socket = str(context.node_config.get("daemon-socket", os.environ.get(SOCKET_VARIABLE, "")))
    if not socket:
        from edge_client.training.own_process import OwnProcess

        publishing = _publishing(context)
        tls = str(context.node_config.get("tls", os.environ.get(TLS_VARIABLE, "")))
        allowed = str(context.node_config.get("allow-tasks", os.environ.get(ALLOW_VARIABLE, "")))
        files = TlsFiles.parse(tls) if tls else None
        names = {*allowed.split(), *allow_tasks}
        required = tuple(str(context.node_config.get("require", "")).split())
        yield OwnProcess(_NodeState(context.state), files, names, publishing, required)
        return
    with DaemonClient(Path(socket), _RETURN_DEADLINE_S) as daemon:
        yield daemon


def _publishing(context: Context) -> "Publishing | None":
    """Return who takes the model while this process trains it: a file, if the node's config names one."""
    from edge_client.inference import Artefact
    from edge_client.training.publishing import Publishing, TrainedModel

    path = str(context.node_config.get("publish", ""))
    every = context.node_config.get("publish-every", 0)
    if not isinstance(every, int) or every < 0:
        raise WorkError(
            f"the node's config has publish-every={every!r}: it is a number of steps, or 0 for the end alone"
        )
    if not path:
        if every:
            raise WorkError("the node's config has publish-every, but no file to publish to: add publish='model.pt'")
        return None

    def publish(model: TrainedModel) -> None:
        task, name = model.trainer.task, model.trainer.settings.task
        labels, input_shape = tuple(task.labels), tuple(task.input_shape)
        Artefact(name, labels, input_shape, model.step, model.weights).save(Path(path))

    return Publishing(publish, every)


@_explain_failures
def query(message: Message, context: Context, allow_tasks: Collection[str] = ()) -> Message:
    """Check the settings and answer the initial weights."""
    with _worker(context, allow_tasks) as worker:
        weights = worker.initial_weights(_settings(message))
    return Message(RecordDict({"arrays": _record(weights)}), reply_to=message)


@_explain_failures
def train(message: Message, context: Context, allow_tasks: Collection[str] = ()) -> Message:
    """Train a round's batches in step with the other devices."""
    config = message.content.config_records["config"]
    request = TrainRequest(
        data=_data(message, context),
        coordinator=str(config["coordinator"]),
        session=str(config["session"]),
        device=str(context.node_config.get("device", "")),
        first_step=int(config["first-step"]),  # type: ignore[arg-type]
        steps=int(config["steps"]),  # type: ignore[arg-type]
        weights=_weights(message),
    )
    with _worker(context, allow_tasks) as worker:
        report, weights = worker.train(request)
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
            "arrays": _record(weights),
            "metrics": metrics,
            "report": ConfigRecord({"step": report.step, "weights-digest": report.weights_digest}),
        }
    )
    return Message(content, reply_to=message)


@_explain_failures
def evaluate_model(message: Message, context: Context, allow_tasks: Collection[str] = ()) -> Message:
    """Try the model on this device's held-out samples."""
    with _worker(context, allow_tasks) as worker:
        result = worker.evaluate(_data(message, context), _weights(message))
    metrics = MetricRecord({"num-examples": result.samples, "accuracy": result.accuracy, "loss": result.loss})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


def make_client_app(allow_tasks: Collection[str] = ()) -> ClientApp:
    """Return a ClientApp, for a Flower app of your own.

    Args:
        allow_tasks: import paths of tasks that a run may name besides those that the node allows: the Flower app's own,
            whose code came with it and runs on the node anyway. A daemon goes by its configuration alone.

    """
    made = ClientApp()
    made.query()(lambda message, context: query(message, context, allow_tasks))
    made.train()(lambda message, context: train(message, context, allow_tasks))
    made.evaluate()(lambda message, context: evaluate_model(message, context, allow_tasks))
    return made


def _weights(message: Message) -> bytes:
    record = message.content.array_records["arrays"]
    return dump_arrays({name: array.numpy() for name, array in record.items()})


def _record(weights: bytes) -> ArrayRecord:
    return ArrayRecord({name: Array(array) for name, array in load_arrays(weights).items()})


def _settings(message: Message) -> dict[str, Any]:
    settings: dict[str, Any] = json.loads(str(message.content.config_records["config"]["settings"]))
    return settings


def _data(message: Message, context: Context) -> DataRequest:
    config = context.node_config
    try:
        return DataRequest(_settings(message), int(config["partition-id"]), int(config["num-partitions"]))
    except KeyError as error:
        raise WorkError(
            f"the node's config lacks {error}; start it with --node-config 'partition-id=0 num-partitions=4'"
        ) from None


app = make_client_app()
