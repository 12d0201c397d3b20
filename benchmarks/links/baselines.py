"""The baselines' devices: optimizers of torch, over the exchange that ours have, with the codecs of its sessions."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from benchmarks.convergence.learning_tasks import LearningTask
from benchmarks.convergence.trials import BATCH_SIZE
from benchmarks.frontier.interface import Options, Recipe
from benchmarks.links.device import Device, OwnBatches
from benchmarks.links.packing import Packing
from benchmarks.shared.buffers import put_buffers, take_buffers
from edge_client.exchange import Exchange, Membership, StepResult
from edge_client.sync.replica import ModelReplica


class _Baseline(Device):
    """A device that exchanges one packing of tensors, and the model's buffers exactly."""

    kind: str

    def __init__(
        self, model: nn.Module, task: LearningTask, batches: OwnBatches, recipe: Recipe, options: Options
    ) -> None:
        super().__init__(model, task, batches)
        self._recipe = recipe
        self._options = options
        self._inner: Sequence[torch.optim.Optimizer] = recipe.inner(model, options)
        self._packing = Packing(self.kind, dict(model.named_parameters()))

    def join(self, exchange: Exchange) -> None:
        """Take a place."""
        replica = ModelReplica(self.model, is_shared=True, apply=_refuse, before=self._before)
        buffers = Packing("parameter", take_buffers(self.model))
        told = {name: f"{value:g}" for name, value in self._options.items()}
        self._buffers = buffers
        self._place: Membership = exchange.join([*self._packing.specs(), *buffers.specs()], told, replica)

    def _before(self) -> Mapping[str, Tensor]:
        """Return what the device has changed since the last exchange, as it was."""
        return {}

    def _exchange(
        self, tensors: Mapping[str, Tensor], loss: float, batches: int
    ) -> tuple[dict[str, Tensor], StepResult]:
        """Return the means as they arrive, and the exchange's result; the buffers are averaged."""
        place = self._place
        place.begin(batches * BATCH_SIZE)
        for key, value in (self._packing.pack(tensors) | self._buffers.pack(take_buffers(self.model))).items():
            place.contribute(key, value)
        place.complete(loss, batches=batches)
        result = place.collect()
        if result.is_healed:
            raise RuntimeError(f"before step {result.next_step} this device had not the weights of the others")
        put_buffers(self.model, self._buffers.unpack(result.tensors))
        return self._packing.unpack(result.tensors), result


class SynchronousDevice(_Baseline):
    """Sends the gradient of every batch, and takes the step along the mean that all take."""

    kind = "gradient"

    def train_batch(self) -> StepResult:
        """Train a batch and exchange."""
        self.model.zero_grad(set_to_none=True)
        loss = self._backward()
        parameters = dict(self.model.named_parameters())
        gradients = {n: p.grad if p.grad is not None else torch.zeros_like(p) for n, p in parameters.items()}
        mean, result = self._exchange(gradients, loss, 1)
        for name, parameter in parameters.items():
            parameter.grad = mean[name]
        for optimizer in self._inner:
            optimizer.step()
        return result


class LocalDevice(_Baseline):
    """Takes some steps alone and sends how far they led; all take the outer step along the mean."""

    kind = "delta"

    def __init__(
        self, model: nn.Module, task: LearningTask, batches: OwnBatches, recipe: Recipe, options: Options
    ) -> None:
        super().__init__(model, task, batches, recipe, options)
        assert recipe.outer is not None
        self._outer = recipe.outer(model, options)
        self._done = 0
        self._anchor = self._copies()

    def train_batch(self) -> StepResult | None:
        """Train a batch; exchange at the end of a round."""
        self.model.zero_grad(set_to_none=True)
        loss = self._backward()
        for optimizer in self._inner:
            optimizer.step()
        self._done += 1
        return self._end_round(loss) if self._done == int(self._options["steps"]) else None

    def _before(self) -> Mapping[str, Tensor]:
        return self._anchor

    def _copies(self) -> dict[str, Tensor]:
        return {name: parameter.detach().clone() for name, parameter in self.model.named_parameters()}

    def _end_round(self, loss: float) -> StepResult:
        parameters = dict(self.model.named_parameters())
        moves = {name: (parameter - self._anchor[name]).detach() for name, parameter in parameters.items()}
        mean, result = self._exchange(moves, loss, self._done)
        for name, parameter in parameters.items():
            with torch.no_grad():
                parameter.copy_(self._anchor[name])
            parameter.grad = -mean[name]
        self._outer.step()
        if not self._recipe.keeps_inner:
            self._inner = self._recipe.inner(self.model, self._options)
        self._done, self._anchor = 0, self._copies()
        return result


def baseline(
    model: nn.Module, task: LearningTask, batches: OwnBatches, recipe: Recipe, options: Options
) -> SynchronousDevice | LocalDevice:
    """Return a device of a baseline."""
    kind = SynchronousDevice if recipe.outer is None else LocalDevice
    return kind(model, task, batches, recipe, options)


def _refuse(result: StepResult) -> None:
    """No step commits without one of the devices, so that none has to be made up for."""
    raise RuntimeError(f"step {result.step} was committed without this device")
