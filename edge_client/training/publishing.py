"""Who hears of a model while it is trained: every few steps, with the average of its iterates."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from edge_client.training.trainer import Trainer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainedModel:
    """A model in the middle of its training."""

    trainer: Trainer
    weights: dict[str, Tensor]
    """A copy of the model's state_dict with the average of its iterates."""
    step: int
    """Steps behind them."""


@dataclass
class Publishing:
    """Who takes the model while it is trained. A full or broken disk stops no training: what was there before stays."""

    publish: Callable[[TrainedModel], None]
    """Raises OSError if it cannot."""
    every_steps: int = 0
    """Steps between two models; 0 for none."""
    trouble: str = field(default="", init=False)
    """Why the last model was not published; empty if it was."""

    def is_due_after(self, step: int) -> bool:
        """Return whether a model is to be published after a step."""
        return self.every_steps > 0 and (step + 1) % self.every_steps == 0

    def offer(self, model: TrainedModel) -> None:
        """Publish a model, or say in the log why it cannot be."""
        before = self.trouble
        try:
            self.publish(model)
        except OSError as error:
            self.trouble = f"{error.filename or 'the model'} cannot be written: {error.strerror or error}"
            if self.trouble != before:
                log.error("step %d: %s; training goes on, and what serves stays", model.step, self.trouble)
        else:
            self.trouble = ""
