"""What is asked of a device and what it answers, as messages of the service `Device`, and back: for both sides."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from edgenewton.common.evaluation import Evaluation
from edgenewton.v1 import device_pb2 as pb

from edge_client.training.work import DataRequest, TrainedStep, TrainingReport, TrainRequest

MAX_MESSAGE_BYTES = (1 << 31) - 1
"""A whole model goes in one message; Protocol Buffers end here."""


def settings_to_text(settings: Mapping[str, Any]) -> str:
    """Return settings as a message has them."""
    return json.dumps(dict(settings))


def settings_from_text(text: str) -> dict[str, Any]:
    """Return the settings in a message, not checked yet."""
    try:
        values = json.loads(text)
    except ValueError:
        values = None
    # What is no object has no setting that could be named; the process that trains names all else.
    return values if isinstance(values, dict) else {"settings_json": text}


def data_to_proto(data: DataRequest) -> pb.DeviceData:
    """Return the message that asks for data."""
    return pb.DeviceData(settings_json=settings_to_text(data.settings), index=data.index, count=data.count)


def data_from_proto(message: pb.DeviceData) -> DataRequest:
    """Return the data that a message asks for."""
    return DataRequest(settings_from_text(message.settings_json), message.index, message.count)


def train_to_proto(request: TrainRequest) -> pb.TrainRequest:
    """Return the message that asks for training."""
    return pb.TrainRequest(
        data=data_to_proto(request.data),
        coordinator=request.coordinator,
        session=request.session,
        device=request.device,
        first_step=request.first_step,
        steps=request.steps,
        weights=request.weights,
    )


def train_from_proto(message: pb.TrainRequest) -> TrainRequest:
    """Return the training that a message asks for."""
    return TrainRequest(
        data=data_from_proto(message.data),
        coordinator=message.coordinator,
        session=message.session,
        device=message.device,
        first_step=message.first_step,
        steps=message.steps,
        weights=message.weights,
    )


def step_to_proto(step: TrainedStep) -> pb.TrainProgress:
    """Return the message that tells of a step."""
    return pb.TrainProgress(
        step=step.step, loss=step.loss, session_loss=step.session_loss, devices=step.devices, epsilon=step.epsilon
    )


def step_from_proto(message: pb.TrainProgress) -> TrainedStep:
    """Return the step that a message tells of."""
    epsilon = message.epsilon if message.HasField("epsilon") else None
    return TrainedStep(message.step, message.loss, message.session_loss, message.devices, epsilon=epsilon)


def result_to_proto(report: TrainingReport, weights: bytes, not_promoted: str) -> pb.TrainResult:
    """Return the message that ends a training."""
    return pb.TrainResult(report_json=json.dumps(asdict(report)), weights=weights, not_promoted=not_promoted)


def result_from_proto(message: pb.TrainResult) -> tuple[TrainingReport, bytes]:
    """Return what a training led to."""
    return TrainingReport(**json.loads(message.report_json)), message.weights


def evaluation_to_proto(evaluation: Evaluation) -> pb.EvaluateReply:
    """Return the message that tells how good a model is."""
    return pb.EvaluateReply(correct=evaluation.correct, samples=evaluation.samples, loss=evaluation.loss)


def evaluation_from_proto(message: pb.EvaluateReply) -> Evaluation:
    """Return what a message tells of a model."""
    return Evaluation(message.correct, message.samples, message.loss)
