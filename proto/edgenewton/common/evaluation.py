"""How good a model is."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Evaluation:
    """How the model did on held-out samples: correct of samples, and the mean loss over them."""

    correct: int
    samples: int
    loss: float
