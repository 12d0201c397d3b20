"""Simulated fleets under a privacy budget, of which only the noised sums of what is clipped are applied.

The noise of a sum is drawn at once instead of share by share, which is the same distribution but for less than 1e-1000.
"""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from edge_client import (
    Curvature,
    IterateAverage,
    NewtonOptimizer,
    PrivacyBudget,
    PrivateGradients,
    Probe,
    Refresh,
    TrustRegion,
)
from edge_client.curvature.probe_inputs import GaussianInputs
from edge_client.exchange.in_process import InProcessExchange, InProcessMembership
from edge_client.privacy import ClippedNoise, Unit
from edge_client.privacy.discrete_gaussian import Integers, discrete_gaussian
from edge_client.tasks import Partition, Samples, load_task

DELTA = 1e-5


@dataclass(frozen=True)
class Options:
    """Of one method; each uses some of them."""

    exchanges: int
    clip_norm: float
    lr: float
    """Of the step that is taken with a noised mean."""
    momentum: float
    averaging: float
    """Decay of the average of the iterates that is tried in the end; 0 for none."""
    damping: float = 0.0
    kl_clip: float = math.inf
    shrink_after: float = math.inf
    local_steps: int = 1
    local_lr: float = 1.0


@dataclass(frozen=True)
class Case:
    """What is trained, by whom, and under which budget."""

    task: str
    devices: int
    epsilon: float
    unit: Unit

    def budget(self, options: Options, samples: int) -> PrivacyBudget:
        """Return the budget of a run, in which all of a device's samples are in each exchange."""
        batch = samples if self.unit == "sample" else 1
        return PrivacyBudget(self.epsilon, DELTA, options.clip_norm, self.devices, options.exchanges, self.unit, batch)


class FleetData:
    """The devices' samples, spread alike, and a small model for them, since noise is added to each parameter.

    Args:
        task: "digits" (2,410 parameters) or "motion" (590).
        devices: how many.
        seed: of the split and the model.

    """

    def __init__(self, task: str, devices: int, seed: int) -> None:
        of = load_task(task)
        held_out = of.test_data(Partition(0, 1, "iid", seed=seed))
        shares = [of.train_data(Partition(index, devices, "iid", seed=seed)) for index in range(devices)]
        assert isinstance(held_out, Samples)
        self.held_out = held_out
        self.shares = [share for share in shares if isinstance(share, Samples)]
        self.counts = [len(share) for share in self.shares]
        self.inputs = nn.utils.rnn.pad_sequence([share.inputs for share in self.shares], batch_first=True)
        self.targets = nn.utils.rnn.pad_sequence([share.targets for share in self.shares], batch_first=True)
        """`[devices, most samples]`, zeros where a device has fewer."""
        torch.manual_seed(seed)
        self._model = _model_of(task)
        with torch.no_grad():
            self._model(held_out.inputs[:1])  # lazy layers learn their shapes

    def model(self) -> nn.Module:
        """Return the model as it is at first."""
        return copy.deepcopy(self._model)

    def accuracy(self, model: nn.Module) -> float:
        """Return the part of the held-out samples that a model tells."""
        with torch.no_grad():
            return float((model(self.held_out.inputs).argmax(1) == self.held_out.targets).float().mean())


@cache
def fleet_data(task: str, devices: int, seed: int) -> FleetData:
    """Return the same data for the same arguments."""
    return FleetData(task, devices, seed)


def _model_of(task: str) -> nn.Module:
    if task == "digits":
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))
    return nn.Sequential(
        nn.Conv2d(6, 8, (1, 9), stride=(1, 4)), nn.ReLU(), nn.AvgPool2d((1, 8)), nn.Flatten(), nn.LazyLinear(6)
    )


class Gradients:
    """Gradients of many batches at once.

    Args:
        model: is called with inputs.

    """

    def __init__(self, model: nn.Module) -> None:
        def loss(parameters: Mapping[str, Tensor], inputs: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
            outputs = torch.func.functional_call(model, dict(parameters), (inputs,))
            return weights @ nn.functional.cross_entropy(outputs, targets, reduction="none")

        self._of = torch.func.grad(loss)

    def __call__(
        self, parameters: Mapping[str, Tensor], inputs: Tensor, targets: Tensor, weights: Tensor, *, alike: bool = True
    ) -> dict[str, Tensor]:
        """Return each batch's gradient by name, `[batches, *shape]`, for inputs `[batches, n, *input_shape]`.

        Args:
            parameters: by name, `[*shape]`; `[batches, *shape]` if they are not alike.
            inputs: of the batches.
            targets: theirs.
            weights: of each sample's loss, `[batches, n]`.
            alike: whether all batches have the same parameters.

        """
        over = None if alike else 0
        found: dict[str, Tensor] = torch.func.vmap(self._of, (over, 0, 0, 0))(parameters, inputs, targets, weights)
        return found


def gradients_of_units(
    data: FleetData, unit: Unit, gradients: Gradients, at: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the gradient of all of each device's samples, or of each sample of all devices in turn."""
    if unit == "device":
        counts = torch.tensor(data.counts)
        is_there = torch.arange(data.inputs.shape[1]) < counts.unsqueeze(1)
        return gradients(at, data.inputs, data.targets, is_there / counts.unsqueeze(1))
    inputs = torch.cat([share.inputs for share in data.shares]).unsqueeze(1)
    targets = torch.cat([share.targets for share in data.shares]).unsqueeze(1)
    return gradients(at, inputs, targets, torch.ones(len(inputs), 1))


class NoisedSum:
    """What a fleet's contributions add up to, on the grid of their noise.

    Args:
        case: whose budget it is.
        data: of the devices.
        noise: of one device.
        random_bytes: where the randomness comes from.

    """

    def __init__(self, case: Case, data: FleetData, noise: ClippedNoise, random_bytes: Any) -> None:
        self._unit, self._counts, self._noise = case.unit, data.counts, noise
        self._random_bytes = random_bytes
        self._together = round(noise.deviation * math.sqrt(case.devices))

    def of(self, rows: npt.NDArray[np.float32], budget: PrivacyBudget) -> Integers:
        """Return the noised sum of contributions `[devices, elements]`, or of gradients `[samples, elements]`."""
        total = discrete_gaussian(self._together, rows.shape[1], self._random_bytes)
        if self._unit == "sample":
            norms = np.linalg.norm(rows, axis=1, keepdims=True)
            clipped = rows * np.minimum(1.0, budget.clip_norm / np.maximum(norms, 1e-30)) / budget.batch_size
            rows = np.stack([part.sum(0) for part in np.split(clipped, np.cumsum(self._counts)[:-1])])
        for row in rows:
            total = total + self._noise.clipped(row)
        return total


class _Place(InProcessMembership):
    least_devices = 1_000_000


class _Exchange(InProcessExchange):
    """A fleet in one process: what it contributes is the mean already."""

    is_alone = False

    def join(self, tensors: Any, options: Any, replica: Any, training_samples: int = 0, stages: Any = None) -> _Place:  # noqa: ARG002
        return _Place(self.device, replica.next_step or 0)


class _FleetPlan(PrivateGradients):
    """The plan of all devices at once."""

    def __init__(self, case: Case, data: FleetData, budget: PrivacyBudget, probe: Probe, random_bytes: Any) -> None:
        super().__init__(_Exchange(), budget, probe)
        self._case, self._data, self._random_bytes = case, data, random_bytes
        self._gradients = Gradients(data.model())

    def join(self, options: Mapping[str, str]) -> None:
        super().join(options)
        self._sum = NoisedSum(self._case, self._data, self._noise, self._random_bytes)

    def _nonfinite(self) -> str | None:
        return None

    def take_batch(self) -> None:
        """Take each unit's gradient at the weights as they are."""
        at = {name: p.detach() for p, name in self._tensors.names.items()}
        self._rows = self.written(gradients_of_units(self._data, self._case.unit, self._gradients, at))
        self._total = torch.zeros(0)

    def _noised(self, *, skips: bool) -> Any:  # noqa: ARG002
        return self._sum.of(self._rows.numpy(), self.budget) / self._case.devices


def ours(case: Case, options: Options, seed: int) -> float:
    """Return the accuracy of `PrivateGradients` with the product's optimizer."""
    data = fleet_data(case.task, case.devices, seed)
    model, shape = data.model(), data.inputs.shape[2:]
    budget = case.budget(options, max(data.counts))
    # As the trainer has it for tasks without synthetic inputs of their own.
    inputs = GaussianInputs(torch.zeros(shape), torch.ones(shape))
    probe = Probe(inputs, nn.functional.cross_entropy, samples=64, seed=seed)
    plan = _FleetPlan(case, data, budget, probe, np.random.default_rng((seed, 7)).bytes)
    optimizer = NewtonOptimizer(
        model,
        lr=options.lr,
        momentum=options.momentum,
        sync=plan,
        curvature=Curvature(),
        trust=TrustRegion(options.damping, options.kl_clip, math.inf, options.shrink_after),
        refresh=Refresh(warmup_steps=3, factor_every=3, inverse_every=3),
        averaging=IterateAverage(decay=options.averaging) if options.averaging else None,
    )
    for _ in range(options.exchanges):
        optimizer.zero_grad()
        plan.take_batch()
        optimizer.step(samples=1)
    with optimizer.averaged():
        return data.accuracy(model)


def first_order(case: Case, options: Options, seed: int) -> float:
    """Return the accuracy of DP-SGD, or with several local steps of DP-FedAvg; its average is ours."""
    data = fleet_data(case.task, case.devices, seed)
    model = data.model()
    at = {name: p.detach().clone() for name, p in model.named_parameters()}
    budget = case.budget(options, max(data.counts))
    random_bytes = np.random.default_rng((seed, 7)).bytes
    noise = ClippedNoise(budget, sum(p.numel() for p in at.values()), random_bytes)
    summed, gradients = NoisedSum(case, data, noise, random_bytes), Gradients(data.model())
    generator = torch.Generator().manual_seed(seed)
    velocity = {name: torch.zeros_like(p) for name, p in at.items()}
    average = dict(at)
    for number in range(options.exchanges):
        if options.local_steps > 1:
            told = _moves(data, options, gradients, at, generator)
        else:
            told = gradients_of_units(data, case.unit, gradients, at)
        rows = torch.cat([each.flatten(1) for each in told.values()], dim=1).numpy()
        mean = torch.from_numpy(summed.of(rows, budget) * (noise.grid / case.devices)).float()
        pieces = torch.split(mean, [p.numel() for p in at.values()])
        for (name, p), piece in zip(at.items(), pieces, strict=True):
            velocity[name] = options.momentum * velocity[name] + piece.view_as(p)
            step = piece.view_as(p) + options.momentum * velocity[name]
            at[name] = p - options.lr * step
            weight = max(1 - options.averaging, 9 / (10 + number))
            average[name] = average[name].lerp(at[name], min(1.0, weight)) if options.averaging else at[name]
    model.load_state_dict(average)
    return data.accuracy(model)


def _moves(
    data: FleetData, options: Options, gradients: Gradients, at: Mapping[str, Tensor], generator: torch.Generator
) -> dict[str, Tensor]:
    """Return by how much local steps of SGD take each device down from the same weights, `[devices, *shape]`."""
    devices, batch = len(data.counts), min(32, *data.counts)
    moved = {name: p.expand(devices, *p.shape).clone() for name, p in at.items()}
    rows = torch.arange(devices).unsqueeze(1)
    for _ in range(options.local_steps):
        chosen = torch.stack([torch.randperm(count, generator=generator)[:batch] for count in data.counts])
        weights = torch.full((devices, batch), 1 / batch)
        found = gradients(moved, data.inputs[rows, chosen], data.targets[rows, chosen], weights, alike=False)
        moved = {name: p - options.local_lr * found[name] for name, p in moved.items()}
    return {name: at[name] - p for name, p in moved.items()}
