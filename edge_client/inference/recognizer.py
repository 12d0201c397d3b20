"""Recognition: raw samples in, labels with probabilities out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from edge_client.inference.artefact import Artefact, ArtefactError
from edge_client.tasks import Task, load_task


@dataclass(frozen=True)
class Prediction:
    """What a sample was recognised as: the most probable label."""

    label: str
    probability: float
    """Of that label, 0 to 1."""
    probabilities: dict[str, float]
    """Of every label; they sum to 1."""


class Recognizer:
    """A trained model, ready to recognise.

    Raises:
        ArtefactError: the artefact does not fit its task; the text names the first layer that differs.
        TaskError: its task cannot be loaded.

    """

    def __init__(self, artefact: Artefact) -> None:
        self.artefact = artefact
        self._task = load_task(artefact.task)
        self._model = self._task.model()
        difference = _difference(artefact, self._task, self._model.state_dict())
        if difference is not None:
            raise ArtefactError(f"the artefact does not fit task {artefact.task!r}: {difference}")
        self._model.load_state_dict(artefact.weights)
        self._model.eval()

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Return a recognizer for a model file.

        Raises:
            ArtefactError: the file cannot be used; the text names it.
            TaskError: its task cannot be loaded.

        """
        artefact = Artefact.load(Path(path))
        try:
            return cls(artefact)
        except ArtefactError as error:
            raise ArtefactError(f"{path}: {error}") from None

    def predict(self, samples: Sequence[object]) -> list[Prediction]:
        """Recognise raw samples, in one batch: whatever the task prepares, such as paths, images or arrays.

        Raises:
            SampleError: a sample cannot be used; nothing is recognised then.

        """
        if not samples:
            return []
        inputs = torch.stack([self._task.prepare(sample) for sample in samples])
        with torch.inference_mode():
            rows = self._model(inputs).softmax(dim=1).tolist()
        return [self._prediction(row) for row in rows]

    def true_label(self, sample: object) -> str | None:
        """Return the label that a raw sample carries itself, if it does."""
        return self._task.true_label(sample)

    def _prediction(self, row: list[float]) -> Prediction:
        probabilities = dict(zip(self.artefact.labels, row, strict=True))
        label = max(probabilities, key=probabilities.__getitem__)
        return Prediction(label, probabilities[label], probabilities)


def _difference(artefact: Artefact, task: Task, expected: Mapping[str, Tensor]) -> str | None:
    """Return a phrase that says what first differs between an artefact and its task, or None."""
    if artefact.input_shape != tuple(task.input_shape):
        return f"its inputs are {_shape(artefact.input_shape)}, the task's {_shape(task.input_shape)}"
    if len(artefact.labels) != len(task.labels):
        return f"it has {len(artefact.labels)} labels, the task {len(task.labels)}"
    for name, tensor in expected.items():
        if name not in artefact.weights:
            return f"it lacks {name!r}, which is {_shape(tensor.shape)} in the model"
        given = artefact.weights[name]
        if given.shape != tensor.shape:
            return f"its {name!r} is {_shape(given.shape)}, the model's {_shape(tensor.shape)}"
    for name, tensor in artefact.weights.items():
        if name not in expected:
            return f"its {name!r}, which is {_shape(tensor.shape)}, is not in the model"
    return None


def _shape(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape)) or "a scalar"
