"""From decoded samples to probabilities: what every engine computes, and what exported models contain."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from edge_client.inference.artefact import Artefact
from edge_client.inference.errors import ArtefactError
from edge_client.inference.shapes import shape_text
from edge_client.tasks import Task


class Classifier(nn.Module):
    """A model with a softmax behind it: inputs `[n, *input_shape]` to probabilities `[n, labels]`."""

    def __init__(self, model: nn.Module, answer: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model = model
        self._answer = answer

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the probability of each label."""
        return self._answer(self.model(inputs)).softmax(dim=-1)


class Preprocessing(nn.Module):
    """A task's preprocessing as a module: decoded samples `[n, *raw_shape]` to inputs `[n, *input_shape]`."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self._task = task

    def forward(self, raw: Tensor) -> Tensor:
        """Return inputs of the model."""
        return self._task.preprocess(raw)


def build_classifier(artefact: Artefact, task: Task) -> Classifier:
    """Return an artefact's model, ready to recognise.

    Raises:
        ArtefactError: the artefact does not fit its task; the text names the first layer that differs.

    """
    with torch.random.fork_rng(devices=[]):  # the initial weights are drawn, and replaced
        model = task.model()
    difference = _difference(artefact, task, model.state_dict())
    if difference is not None:
        raise ArtefactError(f"the artefact does not fit task {artefact.task!r}: {difference}")
    model.load_state_dict(artefact.weights)
    classifier = Classifier(model, task.answer)
    classifier.eval()
    return classifier.requires_grad_(False)


def preprocesses(task: Task) -> bool:
    """Return whether a task's decoded samples are not yet inputs of its model."""
    return type(task).preprocess is not Task.preprocess


def _difference(artefact: Artefact, task: Task, expected: Mapping[str, Tensor]) -> str | None:
    """Return a phrase that says what first differs between an artefact and its task, or None."""
    if artefact.input_shape != tuple(task.input_shape):
        return f"its inputs are {shape_text(artefact.input_shape)}, the task's {shape_text(task.input_shape)}"
    if len(artefact.labels) != len(task.labels):
        return f"it has {len(artefact.labels)} labels, the task {len(task.labels)}"
    for name, tensor in expected.items():
        if name not in artefact.weights:
            return (
                f"it lacks {name!r}, which is {shape_text(tensor.shape)} in the model; the devices alone have their "
                "personal layers: take a device's own model"
            )
        given = artefact.weights[name]
        if given.shape != tensor.shape:
            return f"its {name!r} is {shape_text(given.shape)}, the model's {shape_text(tensor.shape)}"
    for name, tensor in artefact.weights.items():
        if name not in expected:
            return f"its {name!r}, which is {shape_text(tensor.shape)}, is not in the model"
    return None
