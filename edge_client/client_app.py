"""Flower's ClientApp: one message trains many batches through the coordinator.

A ClientApp's process may end after each message, so the optimizer's state travels in the context that Flower keeps
for the node.
"""

import io
import json
import logging
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from edge_client.exchange import ExchangeError, GradientExchange
from edge_client.settings import SettingsError, TrainSettings, check_settings
from edge_client.tasks import Partition, TaskError, load_task
from edge_client.trainer import Trainer, build_model, evaluate

log = logging.getLogger(__name__)

app = ClientApp()

_ERROR_CODE = 1
_STATE_KEY = "optimizer"

Handler = Callable[[Message, Context], Message]


def _explain_failures(handler: Handler) -> Handler:
    """Answer a failure that a person can mend with its sentence instead of a stack trace."""

    @wraps(handler)
    def answer(message: Message, context: Context) -> Message:
        try:
            return handler(message, context)
        except (ExchangeError, SettingsError, TaskError, ValueError) as error:
            log.error("%s", error)
            return Message(Error(_ERROR_CODE, str(error)), reply_to=message)

    return answer


@app.query()
@_explain_failures
def query(message: Message, context: Context) -> Message:  # noqa: ARG001
    """Check the settings and answer the initial weights."""
    settings = _settings(message)
    model = build_model(load_task(settings.task), settings.seed)
    return Message(RecordDict({"arrays": ArrayRecord(model.state_dict())}), reply_to=message)


@app.train()
@_explain_failures
def train(message: Message, context: Context) -> Message:
    """Train a round's batches in step with the other devices."""
    settings = _settings(message)
    config = message.content.config_records["config"]
    index, count = _partition(context)
    device = f"device-{index}"
    exchange = GradientExchange.join(str(config["coordinator"]), session=str(config["session"]), device=device)
    try:
        weights = message.content.array_records["arrays"].to_torch_state_dict()
        trainer = Trainer(settings, index, count, exchange, weights, _load_state(context))
        report = trainer.train(int(config["steps"]))  # type: ignore[arg-type]
    except BaseException as error:
        exchange.close(failure=str(error) or type(error).__name__)
        raise
    exchange.close()
    _save_state(context, trainer.state_dict())
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
            "arrays": ArrayRecord(trainer.model.state_dict()),
            "metrics": metrics,
            "report": ConfigRecord({"device": device, "weights-digest": report.weights_digest}),
        }
    )
    return Message(content, reply_to=message)


@app.evaluate()
@_explain_failures
def evaluate_model(message: Message, context: Context) -> Message:
    """Try the model on this device's held-out samples."""
    settings = _settings(message)
    index, count = _partition(context)
    task = load_task(settings.task)
    weights = message.content.array_records["arrays"].to_torch_state_dict()
    partition = Partition(index, count, settings.partition, settings.alpha, settings.seed)
    result = evaluate(build_model(task, settings.seed, weights), task, task.test_data(partition))
    metrics = MetricRecord(
        {"num-examples": result.samples, "accuracy": result.correct / result.samples, "loss": result.loss}
    )
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


def _settings(message: Message) -> TrainSettings:
    text = message.content.config_records["config"]["settings"]
    return check_settings(json.loads(str(text)))


def _partition(context: Context) -> tuple[int, int]:
    config = context.node_config
    try:
        return int(config["partition-id"]), int(config["num-partitions"])
    except KeyError as error:
        raise SettingsError(
            f"the node's config lacks {error}; start it with --node-config 'partition-id=0 num-partitions=4'"
        ) from None


def _load_state(context: Context) -> dict[str, Any] | None:
    record = context.state.config_records.get(_STATE_KEY)
    if record is None:
        return None
    state: dict[str, Any] = torch.load(io.BytesIO(bytes(record["state"])), weights_only=True)  # type: ignore[arg-type]
    return state


def _save_state(context: Context, state: dict[str, Any]) -> None:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    context.state[_STATE_KEY] = ConfigRecord({"state": buffer.getvalue()})
