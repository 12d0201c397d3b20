"""Recognition: raw samples in, labels with probabilities out."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch

from edge_client.inference.artefact import Artefact, ArtefactError
from edge_client.tasks import load_task


@dataclass(frozen=True)
class Prediction:
    """What a sample was recognised as."""

    label: str
    probability: float
    probabilities: dict[str, float]


class Recognizer:
    """A trained model, ready to recognise.

    Raises:
        ArtefactError: the artefact's weights do not fit its task's model.
        TaskError: its task cannot be loaded.

    """

    def __init__(self, artefact: Artefact) -> None:
        self.artefact = artefact
        self._task = load_task(artefact.task)
        self._model = self._task.model()
        try:
            self._model.load_state_dict(artefact.weights)
        except RuntimeError as error:
            raise ArtefactError(f"the weights do not fit the model of task {artefact.task!r}: {error}") from None
        self._model.eval()

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Return a recognizer for a model file.

        Raises:
            ArtefactError: the file cannot be used.
            TaskError: its task cannot be loaded.

        """
        return cls(Artefact.load(Path(path)))

    def predict(self, samples: Sequence[object]) -> list[Prediction]:
        """Recognise raw samples: whatever the task prepares, such as paths, images or arrays.

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
