"""The trainer of one device: one batch, exchange, invert, update; again until all steps are taken."""

import math
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from edgenewton.common.evaluation import Evaluation
from torch import Tensor, nn

from edge_client.curvature.likelihood import sample_targets
from edge_client.curvature.measured_inputs import MeasuredInputs
from edge_client.curvature.probe import Probe
from edge_client.exchange import Exchange, InProcessExchange
from edge_client.optim import NewtonOptimizer
from edge_client.sync.personal import personal_names
from edge_client.sync.replica import tensors_digest
from edge_client.tasks import Partition, Task, load_task
from edge_client.training.batches import BatchOrder
from edge_client.training.evaluation import evaluate
from edge_client.training.settings import TrainSettings
from edge_client.training.work import TrainedStep, TrainingReport


class Trainer:
    """Trains a task's model on this device's partition, together with the devices of an exchange.

    Args:
        settings: what to train, and how.
        index: number of this device's partition, from 0.
        count: number of partitions.
        exchange: how devices synchronise; None for one device alone.
        weights: initial weights; None for those that the settings' seed gives. Those of personal layers may be missing.
        state: of the optimizer, from `Trainer.state_dict`.

    Raises:
        ValueError: the settings, weights or state do not fit.

    """

    def __init__(
        self,
        settings: TrainSettings,
        index: int = 0,
        count: int = 1,
        exchange: Exchange | None = None,
        weights: Mapping[str, Tensor] | None = None,
        state: dict[str, Any] | None = None,
    ) -> None:
        if settings.threads:
            torch.set_num_threads(settings.threads)
        self.settings = settings
        self.task = load_task(settings.task)
        partition = partition_of(settings, index, count)
        self._samples = self.task.train_data(partition)
        self._held_out = self.task.test_data(partition)
        self._seed = device_seed(settings.seed, index)
        self._batches = BatchOrder(len(self._samples), settings.batch_size, self._seed)
        self.model = build_model(self.task, settings.seed, weights, settings.personal)
        self.exchange = exchange if exchange is not None else InProcessExchange()
        self._evaluation_due: int | None = None
        self.plan = settings.plan(self.exchange, len(self._samples), self._probe)
        self.optimizer = NewtonOptimizer(
            self.model,
            sync=self.plan,
            **settings.optimizer_options(is_alone=self.exchange.is_alone),
        )
        if state is not None:
            self.optimizer.load_state_dict(state)

    def join(self) -> None:
        """Take this device's place, unless it has it; training does it too.

        Raises:
            ExchangeError: the coordinator is down or refuses this device.

        """
        self.model.train()  # what trains its moments now is exchanged
        self.optimizer.join()

    def common(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return those of the model's weights that are no personal layer's: all devices have them in common."""
        return {name: tensor for name, tensor in weights.items() if name not in self.plan.personal}

    def train(self, steps: int, on_step: Callable[[TrainedStep], None] | None = None) -> TrainingReport:
        """Go on until so many steps are taken; those that this device missed count, because it applied them too.

        Raises:
            ExchangeError: the session failed or went on without this device.

        """
        self.join()
        began = time.perf_counter()
        losses: list[float] = []
        target = self.optimizer.current_step + steps
        self.model.train()
        is_done = False
        while not is_done:
            while self.optimizer.current_step < target:
                taken = self.train_batch()
                losses.append(taken.loss)
                if on_step is not None:
                    on_step(taken)
            if self.optimizer.current_step == target:  # else it healed with a state that came after this
                self.optimizer.synchronise()
            is_done = self.optimizer.current_step >= target  # else it healed with one that came before
        return TrainingReport(
            steps=len(losses),
            step=self.optimizer.current_step,
            samples=len(losses) * self.settings.batch_size,
            loss=sum(losses) / len(losses) if losses else math.nan,
            bytes_sent=self.exchange.traffic.sent,
            bytes_received=self.exchange.traffic.received,
            seconds=time.perf_counter() - began,
            weights_digest=tensors_digest(self.common(self.model.state_dict())).hex(),
        )

    def train_batch(self) -> TrainedStep:
        """Take one step: one batch, exchange, invert, update.

        Raises:
            ExchangeError: the session failed or went on without this device.

        """
        self.join()
        step = self.optimizer.current_step
        evaluation = None
        if self._is_evaluation_due(step):
            with self.plan.in_common():
                evaluation = self.evaluate()
        batch = torch.from_numpy(self._batches.indices(step))
        inputs, targets = self._samples.inputs[batch], self._samples.targets[batch]
        self.optimizer.zero_grad()
        outputs = self.model(inputs)
        if self.settings.curvature.fisher == "sampled":
            generator = torch.Generator().manual_seed(self._seed * 1_000_003 + step)
            sampled = sample_targets(outputs, self.task.likelihood, generator)
            self.optimizer.sample_fisher(self.task.loss(outputs, sampled))
        loss = self.task.loss(outputs, targets)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.report(loss.item(), evaluation)
        self.optimizer.step(reevaluate=lambda: self.task.loss(self.model(inputs), targets).item())
        result = self.optimizer.last_result
        if result is None:
            raise RuntimeError("the optimizer's step left no result")
        traffic = self.exchange.traffic
        return TrainedStep(
            step=step,
            loss=loss.item(),
            session_loss=result.loss,
            devices=result.devices,
            exchange_s=self.optimizer.exchange_s,
            curvature_s=self.optimizer.curvature_s,
            bytes_sent=traffic.sent,
            bytes_received=traffic.received,
            evaluation=evaluation,
        )

    def _is_evaluation_due(self, step: int) -> bool:
        """Whether the model is to be tried before a step; within a round of local steps it is no device's but this."""
        every = self.settings.evaluate_every
        if not every or not self.plan.is_in_common:
            return False
        due = -(-step // every) * every if self._evaluation_due is None else self._evaluation_due
        if step < due:
            self._evaluation_due = due
            return False
        self._evaluation_due = (step // every + 1) * every
        return True

    def evaluate(self) -> Evaluation:
        """Try the model on this device's held-out samples."""
        return evaluate(self.model, self.task, self._held_out)

    def _probe(self, samples: int) -> Probe:
        """Return a synthetic batch of the task."""
        task = self.task
        has_own = task.probe(torch.Generator(), 1) is not None
        inputs = _own_inputs(task) if has_own else MeasuredInputs(self._samples.inputs)
        return Probe(inputs, task.loss, task.likelihood, samples)

    def state_dict(self) -> dict[str, Any]:
        """Return the optimizer's state, for another trainer that goes on."""
        return self.optimizer.state_dict()


def _own_inputs(task: Task) -> Callable[[torch.Generator, int], Tensor]:
    def draw(generator: torch.Generator, n: int) -> Tensor:
        inputs = task.probe(generator, n)
        if inputs is None:
            raise ValueError(f"task {task.name!r} gives synthetic inputs at one time and none at another")
        return inputs

    return draw


def partition_of(settings: TrainSettings, index: int, count: int) -> Partition:
    """Return the part of the data that is a device's."""
    return Partition(index, count, settings.partition, settings.alpha, settings.seed)


def device_seed(seed: int, index: int) -> int:
    """Return the seed of a device's batches, different for each device."""
    return seed * 10_007 + index


def build_model(
    task: Task, seed: int, weights: Mapping[str, Tensor] | None = None, personal: Collection[str] = ()
) -> nn.Module:
    """Return a task's model with the weights of a seed, or with given ones.

    Args:
        task: the task.
        seed: gives the weights that are not given.
        weights: by name; None for all from the seed.
        personal: patterns of those that may be missing: see `personal_names`.

    Raises:
        ValueError: the weights do not fit the model, or a pattern matches nothing.

    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = task.model()
    if weights is not None:
        own = model.state_dict()
        kept = {name: own[name] for name in personal_names(model, personal) if name in own}
        try:
            model.load_state_dict({**kept, **weights})
        except RuntimeError as error:
            raise ValueError(f"the weights do not fit the model of task {task.name!r}: {error}") from None
    return model
