"""How good a model is."""

from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True)
class Evaluation:
    """How the model did on held-out samples: correct of samples, and the mean loss over them."""

    correct: int
    samples: int
    loss: float

    @property
    def accuracy(self) -> float:
        """Part of the samples that was recognised; there must be some."""
        return self.correct / self.samples

    @classmethod
    def union(cls, evaluations: Collection["Evaluation"]) -> "Evaluation | None":
        """Return how it did on the samples of all of them together, or None if there are none."""
        samples = sum(evaluation.samples for evaluation in evaluations)
        if not samples:
            return None
        loss = sum(evaluation.loss * evaluation.samples for evaluation in evaluations) / samples
        return cls(sum(evaluation.correct for evaluation in evaluations), samples, loss)
