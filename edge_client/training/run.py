"""Training in one session, as all who train do it: begin, train, keep the state, tell the coordinator how it ended."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from edge_client.exchange import Exchange, InProcessExchange
from edge_client.sync.replica import tensors_digest
from edge_client.training.checkpoint import DeviceCheckpoint
from edge_client.training.publishing import Publishing, TrainedModel
from edge_client.training.settings import TrainSettings
from edge_client.training.trainer import Trainer
from edge_client.training.work import TrainedStep, TrainingReport

log = logging.getLogger(__name__)

Weights = dict[str, Tensor]


@dataclass
class Saving:
    """Who keeps the device's state. A full or broken disk stops no training: what was kept before stays."""

    save: Callable[[DeviceCheckpoint], None]
    """Raises OSError if it cannot."""
    every_steps: int = 0
    """Steps between two savings; 0 for only at the end."""
    trouble: str = field(default="", init=False)
    """Why the last saving failed; empty if it did not."""

    def keep(self, state: DeviceCheckpoint) -> None:
        """Save a state, or say in the log why it cannot be."""
        before = self.trouble
        try:
            self.save(state)
        except OSError as error:
            self.trouble = f"{error.filename or 'the state'} cannot be written: {error.strerror or error}"
            if self.trouble != before:
                log.error("step %d: %s; training goes on, and what was saved before stays", state.step, self.trouble)
        else:
            self.trouble = ""
            if before:
                log.warning("step %d: the state is saved again", state.step)

    def is_due_after(self, step: int) -> bool:
        """Return whether the state is to be kept after a step."""
        return self.every_steps > 0 and (step + 1) % self.every_steps == 0


@dataclass(frozen=True)
class TrainOutcome:
    """What a session led to."""

    report: TrainingReport
    state: DeviceCheckpoint
    """To go on from, with the last iterate."""
    weights: Weights
    """What came of it: the average of the iterates."""
    trainer: Trainer

    @property
    def common_weights(self) -> Weights:
        """Those of them that all devices have in common."""
        return self.trainer.common(self.weights)


def train_in_session(
    session: str,
    settings: TrainSettings,
    index: int = 0,
    count: int = 1,
    *,
    until_step: int,
    connect: Callable[[], Exchange] = InProcessExchange,
    weights: Mapping[str, Tensor] | None = None,
    state: dict[str, Any] | None = None,
    origin: str = "",
    on_step: Callable[[TrainedStep], None] | None = None,
    saving: Saving | None = None,
    publishing: Publishing | None = None,
) -> TrainOutcome:
    """Train a session's steps in step with the other devices, and tell the coordinator how it ended.

    Args:
        session: its name.
        settings: what to train, and how.
        index: number of this device's partition, from 0.
        count: number of partitions.
        until_step: the first step that is not trained. Whoever came late, or comes back, has fewer left.
        connect: opens the exchange with the other devices; without it the device trains alone.
        weights: to begin with; None for those that the settings' seed gives.
        state: of the optimizer, to begin with.
        origin: kept in the states, so that who goes on from one knows what it was trained with.
        on_step: told of each step, after the state was kept.
        saving: who keeps the state; also at the end, before the coordinator hears of it.
        publishing: who takes the model while it is trained.

    Raises:
        ExchangeError: the coordinator is down, refuses this device, or the session failed.
        TaskError: the task cannot be loaded, or its data.
        ValueError: settings, weights or state do not fit.

    """
    exchange = connect()
    try:
        trainer = Trainer(settings, index, count, exchange, weights, state)

        def current() -> DeviceCheckpoint:
            result = tensors_digest(trainer.common(averaged_weights(trainer))).hex()
            return DeviceCheckpoint(session, copy_weights(trainer.model), trainer.state_dict(), origin, result)

        def after_step(step: TrainedStep) -> None:
            if saving is not None and saving.is_due_after(step.step):
                saving.keep(current())
            if publishing is not None and publishing.is_due_after(step.step):
                steps = trainer.optimizer.current_step
                publishing.offer(TrainedModel(trainer, averaged_weights(trainer), steps))
            if on_step is not None:
                on_step(step)

        if not trainer.plan.ended:
            trainer.join()
        report = trainer.train(max(0, until_step - trainer.optimizer.current_step), after_step)
        last = current()
        if saving is not None:
            saving.keep(last)
        if report.is_budget_spent:
            exchange.close(ended=report.ended)
        else:
            exchange.close(failure=report.ended)
    except BaseException as error:
        exchange.close(failure=_reason(error))
        raise
    return TrainOutcome(report, last, averaged_weights(trainer), trainer)


def averaged_weights(trainer: Trainer) -> Weights:
    """Return a copy of the model's state_dict with the average of its iterates."""
    with trainer.optimizer.averaged():
        return copy_weights(trainer.model)


def copy_weights(model: nn.Module) -> Weights:
    """Return a copy of a model's state_dict in the host's memory, whose tensors share none."""
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in model.state_dict().items()}


def _reason(error: BaseException) -> str:
    return "it was stopped" if isinstance(error, KeyboardInterrupt) else str(error) or type(error).__name__
