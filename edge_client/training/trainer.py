"""The trainer of one device: one batch, exchange, invert, update; again until all steps are taken."""

import math
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Literal

import torch
from edgenewton.common.evaluation import Evaluation
from torch import Tensor, nn

from edge_client.curvature.likelihood import sample_targets
from edge_client.curvature.measured_inputs import MeasuredInputs
from edge_client.curvature.probe import Probe
from edge_client.curvature.probe_inputs import GaussianInputs
from edge_client.devices import choose_device, to_device
from edge_client.exchange import Exchange, InProcessExchange, StepResult
from edge_client.optim import NewtonOptimizer
from edge_client.privacy import SampleGradients
from edge_client.sync import PrivateGradients
from edge_client.sync.personal import personal_names
from edge_client.sync.replica import tensors_digest
from edge_client.tasks import Data, DataError, Partition, Samples, Task, load_task
from edge_client.training.batches import StreamEndedError, source_of
from edge_client.training.evaluation import evaluate
from edge_client.training.settings import TrainSettings
from edge_client.training.work import TrainedStep, TrainingReport

_making = threading.Lock()
"""Held while a model is made: torch's generator is that of all threads."""


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
        DataError: the task's data cannot be used, or the device has no training samples.
        ValueError: the settings, weights or state do not fit, or this machine lacks the device that they name.

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
        self.device = choose_device(settings.device)
        """The hardware that trains."""
        self.task = load_task(settings.task)
        partition = partition_of(settings, index, count)
        self._held_out = held_out_data(self.task, partition)
        self._seed = device_seed(settings.seed, index)
        self._batches = source_of(
            self.task,
            self.task.train_data(partition),
            settings.batch_size,
            self._seed,
            whose=f"device {index + 1} of {count}",
            drops_rest=settings.epsilon is not None and settings.privacy_unit == "sample",
        )
        self.model = build_model(self.task, settings.seed, weights, settings.personal).to(self.device)
        self.exchange = exchange if exchange is not None else InProcessExchange()
        self._evaluation_due: int | None = None
        self._batch_samples = 0
        """In the batch that is on."""
        self._session_loss = math.nan
        """The training loss of the last exchange."""
        self.plan = settings.plan(self.exchange, self._batches.samples, self._probe)
        self._sample_gradients = self._private_backward()
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

        Training data that end, and cannot be gone through again, end it before, and so does a privacy budget that is
        spent; the report says so.

        Raises:
            DataError: the training data cannot be loaded.
            ExchangeError: the session failed or went on without this device.

        """
        ended = self.plan.ended if steps else ""
        is_budget_spent = bool(ended)
        if not is_budget_spent:  # else it has nothing to tell the others, who might wait for it
            self.join()
        began = time.perf_counter()
        taken_steps = 0
        target = self.optimizer.current_step + steps
        self.model.train()
        samples, is_done = 0, False
        while not is_done and not ended:
            while self.optimizer.current_step < target:
                if ended := self.plan.ended:
                    is_budget_spent = True
                    break
                try:
                    taken = self.train_batch()
                except StreamEndedError as error:
                    ended = str(error)
                    break
                except RuntimeError as error:
                    if "DataLoader worker" not in str(error):
                        raise
                    # Torch raises it wherever this thread is when a worker dies.
                    raise DataError(f"a worker of the data of task {self.task.name!r} died: {error}") from error
                taken_steps += 1
                samples += self._batch_samples
                if on_step is not None:
                    on_step(taken)
            if self.optimizer.current_step == target:  # else it healed with a state that came after this
                self.optimizer.synchronise()
                self._note_loss(self.optimizer.last_result, is_average=True)
            is_done = self.optimizer.current_step >= target  # else it healed with one that came before
        with self.optimizer.averaged():
            digest = tensors_digest(self.common(self.model.state_dict())).hex()
        return TrainingReport(
            steps=taken_steps,
            step=self.optimizer.current_step,
            samples=samples,
            loss=self._session_loss,
            bytes_sent=self.exchange.traffic.sent,
            bytes_received=self.exchange.traffic.received,
            seconds=time.perf_counter() - began,
            weights_digest=digest,
            epsilon=self.plan.epsilon,
            ended=ended,
            is_budget_spent=is_budget_spent,
        )

    def train_batch(self) -> TrainedStep:
        """Take one step: one batch, exchange, invert, update.

        Raises:
            DataError: the batch cannot be loaded.
            StreamEndedError: there is none; nothing of the step was begun.
            ExchangeError: the session failed or went on without this device.

        """
        self.join()
        step = self.optimizer.current_step
        evaluation = None
        if self._is_evaluation_due(step):
            with self.plan.in_common():
                tried = self.evaluate()
            evaluation = tried if tried.samples else None
        inputs, targets = self._next_batch(step)
        self.optimizer.zero_grad()
        if self._sample_gradients is not None:
            value = self._sample_gradients.backward(inputs, targets)
        else:
            value = self._backward(step, inputs, targets)
        self.optimizer.report(value, evaluation)
        self.optimizer.step(reevaluate=lambda: self.task.loss(self.model(inputs), targets).item())
        result = self.optimizer.last_result
        if result is None:
            raise RuntimeError("the optimizer's step left no result")
        self._note_loss(result)
        traffic = self.exchange.traffic
        has_own_loss = result.is_own or self.plan.epsilon is not None  # with a privacy budget nobody tells another one
        return TrainedStep(
            step=step,
            loss=value,
            session_loss=value if math.isnan(self._session_loss) and has_own_loss else self._session_loss,
            devices=result.devices,
            exchange_s=self.optimizer.exchange_s,
            curvature_s=self.optimizer.curvature_s,
            bytes_sent=traffic.sent,
            bytes_received=traffic.received,
            evaluation=evaluation,
            epsilon=self.plan.epsilon,
        )

    def _backward(self, step: int, inputs: Tensor, targets: Tensor) -> float:
        """Compute the gradients of a batch's mean loss, which is returned."""
        outputs = self.model(inputs)
        if self.settings.curvature.fisher == "sampled":
            generator = torch.Generator().manual_seed(self._seed_of(step))
            sampled = sample_targets(outputs, self.task.likelihood, generator)
            self.optimizer.sample_fisher(self.task.loss(outputs, sampled))
        loss = self.task.loss(outputs, targets)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.item()

    def _note_loss(self, result: StepResult | None, *, is_average: bool = False) -> None:
        """Take note of the training loss of an exchange. An average of buffers alone has none."""
        if result is not None and not result.is_own and not (is_average and math.isnan(result.loss)):
            self._session_loss = result.loss

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

    def _next_batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Return the inputs and targets of a step's batch, augmented, where the model is."""
        batch = self._batches.batch(step)
        if type(self.task).augment is not Task.augment:
            batch = _augmented(self.task, batch, torch.Generator().manual_seed(self._seed_of(step, "augment")))
        self._batch_samples = len(batch)
        return to_device(batch.inputs, self.device), to_device(batch.targets, self.device)

    def _seed_of(self, step: int, purpose: Literal["fisher", "augment"] = "fisher") -> int:
        """Return the seed of the random numbers that a step draws for a purpose."""
        return self._seed * 1_000_003 + step + (1 << 40) * (purpose == "augment")

    def evaluate(self) -> Evaluation:
        """Try the average of the model's iterates on this device's held-out samples."""
        with self.optimizer.averaged():
            return evaluate(self.model, self.task, self._held_out)

    def _probe(self, samples: int) -> Probe:
        """Return a synthetic batch of the task."""
        task = self.task
        if task.probe(torch.Generator(), 1) is not None:
            return Probe(_own_inputs(task), task.loss, task.likelihood, samples)
        held = self._batches.some_inputs()
        inputs: Callable[[torch.Generator, int], Tensor]
        if self.settings.epsilon is None:
            inputs = MeasuredInputs(held)
        elif held.is_floating_point():
            inputs = GaussianInputs(torch.zeros(held.shape[1:]), torch.ones(held.shape[1:]))
        else:
            raise ValueError(
                f"task {task.name!r} has inputs of integers and no probe(): with a privacy budget it must "
                "give synthetic inputs, as none can be measured"
            )
        return Probe(inputs, task.loss, task.likelihood, samples)

    def _private_backward(self) -> SampleGradients | None:
        """Return what takes each sample's gradient by itself, if the privacy budget is of samples."""
        if not isinstance(self.plan, PrivateGradients) or self.plan.budget.unit != "sample":
            return None
        return SampleGradients(self.model, self.task.loss, self.plan)

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


def held_out_data(task: Task, partition: Partition) -> Data:
    """Return a device's held-out samples.

    Raises:
        DataError: they can be gone through once only.

    """
    data = task.test_data(partition)
    if isinstance(data, Iterator):
        raise DataError(
            f"the held-out data of task {task.name!r} can be gone through once only: test_data is to return samples, "
            "or an object whose __iter__ begins anew"
        )
    return data


def _augmented(task: Task, batch: Samples, generator: torch.Generator) -> Samples:
    inputs = task.augment(batch.inputs, generator)
    if not isinstance(inputs, Tensor) or inputs.shape != batch.inputs.shape:
        given = list(inputs.shape) if isinstance(inputs, Tensor) else type(inputs).__name__
        raise DataError(f"augment of task {task.name!r} gave {given} for inputs {list(batch.inputs.shape)}")
    return Samples(inputs, batch.targets)


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
    with _making, torch.random.fork_rng(devices=[]):
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
