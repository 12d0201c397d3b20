"""What must hold of every model, whoever wrote it; the tests assert it, and the benchmark counts it."""

import io
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.zoo.case import Batch, Case
from edge_client import NewtonOptimizer, Refresh

STEPS = 30


def newton(model: nn.Module, **options: Any) -> NewtonOptimizer:
    """Return our optimizer with its defaults."""
    return NewtonOptimizer(model, **options)


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    """Return torch's SGD with its defaults: a step size of 1e-3, no momentum."""
    return torch.optim.SGD(model.parameters())


def adam(model: nn.Module) -> torch.optim.Optimizer:
    """Return torch's Adam with its defaults."""
    return torch.optim.Adam(model.parameters())


def train(
    case: Case, model: nn.Module, optimizer: torch.optim.Optimizer, number: int, batch: Batch | None = None
) -> None:
    """Take a step on a batch, unless another is given that of the same number."""
    optimizer.zero_grad()
    loss = case.seeded_loss(model, case.batch_of(number) if batch is None else batch, number)
    loss.backward()  # type: ignore[no-untyped-call]
    step(case, optimizer)


def step(case: Case, optimizer: torch.optim.Optimizer) -> None:
    """Call the optimizer's `step` as a user of the model would."""
    if case.are_samples_told and isinstance(optimizer, NewtonOptimizer):
        optimizer.step(samples=case.samples)
    else:
        optimizer.step()


def wrong_gradients(case: Case) -> list[str]:
    """Return the parameters whose gradient in a step, or after it, is not the one that plain autograd gives."""
    model = case.model()
    optimizer = newton(model)
    wrong = []
    for number in range(2):
        plain = copy_of(case, model)
        train(case, model, optimizer, number)
        expected = plain_gradients(case, plain, number)
        if optimizer.last_result is None:
            return list(expected)
        sent = optimizer.last_result.tensors
        kept = dict(model.named_parameters())
        wrong += [
            f"{name} in step {number}"
            for name, gradient in expected.items()
            if not torch.equal(sent["gradient", name], gradient) or not torch.equal(_grad(kept[name]), gradient)
        ]
    return wrong


def not_resumed(case: Case) -> list[str]:
    """Return what differs between a training and one that was saved in its middle, made anew, and went on."""
    refresh = Refresh(warmup_steps=2, factor_every=2, inverse_every=2, growth=1)  # so that the middle is no beginning
    model = case.model()
    optimizer = newton(model, refresh=refresh)
    for number in range(3):
        train(case, model, optimizer, number)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    saved = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    resumed = case.model()
    resumed.load_state_dict(saved["model"])
    again = newton(resumed, refresh=refresh)
    again.load_state_dict(saved["optimizer"])
    for number in range(3, 6):
        train(case, model, optimizer, number)
        train(case, resumed, again, number)
    return different(model.state_dict(), resumed.state_dict())


def loss_after(case: Case, make: Callable[[nn.Module], torch.optim.Optimizer], steps: int = STEPS) -> float:
    """Return the loss of a batch after steps on this batch alone; random draws are the same for every optimizer."""
    model, batch = case.model(), case.batch_of(0)
    optimizer = make(model)
    for number in range(steps):
        train(case, model, optimizer, number, batch)
    with torch.no_grad():
        loss = float(case.seeded_loss(model, batch, steps))
    return loss if math.isfinite(loss) else math.inf


def copy_of(case: Case, model: nn.Module) -> nn.Module:
    """Return a model with the same weights that no optimizer has seen."""
    plain = case.model()
    plain.load_state_dict(model.state_dict())
    return plain


def plain_gradients(case: Case, model: nn.Module, number: int) -> dict[str, Tensor]:
    """Return what autograd gives for a batch, zeros for a parameter that it does not use."""
    case.seeded_loss(model, case.batch_of(number), number).backward()  # type: ignore[no-untyped-call]
    return {name: _grad(parameter) for name, parameter in model.named_parameters() if parameter.requires_grad}


def different(state: dict[str, Tensor], other: dict[str, Tensor]) -> list[str]:
    """Return the names of the tensors that are not bit for bit the same; counters of integers may differ."""
    floats = {name: tensor for name, tensor in state.items() if tensor.is_floating_point()}
    return [name for name, tensor in floats.items() if not torch.equal(tensor, other[name])]


def _grad(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
