"""How good a model is."""

import math
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
        """Part of the samples that was recognised; NaN without samples."""
        return self.correct / self.samples if self.samples else math.nan

    @classmethod
    def union(cls, evaluations: Collection["Evaluation"]) -> "Evaluation | None":
        """Return how it did on the samples of all of them together, or None if there are none."""
        evaluations = [evaluation for evaluation in evaluations if evaluation.samples]
        samples = sum(evaluation.samples for evaluation in evaluations)
        if not samples:
            return None
        loss = sum(evaluation.loss * evaluation.samples for evaluation in evaluations) / samples
        return cls(sum(evaluation.correct for evaluation in evaluations), samples, loss)
