"""What a step of a model costs, over a step of SGD, and how much of the model has curvature."""

import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from benchmarks.zoo.case import Case
from benchmarks.zoo.checks import newton, sgd, train
from edge_client import NewtonOptimizer, Refresh

CURVATURE_EVERY = Refresh().factor_every


def share_with_curvature(optimizer: NewtonOptimizer) -> float:
    """Return which part of the parameters that are trained are of layers with a curvature estimate."""
    trained = sum(parameter.numel() for group in optimizer.param_groups for parameter in group["params"])
    layers = [state.layer for state in optimizer._preconditioner.layers if state.is_explained]
    return float(sum(layer.shape.size for layer in layers) / trained)


def overhead(case: Case, repeats: int) -> float:
    """Return a step's mean time over that of SGD: steps with and without curvature, weighed by the default interval.

    Processor time of one thread, which does not depend on what else the machine does; medians.

    Args:
        case: the model.
        repeats: steps of each kind.

    """
    plain_sgd = statistics.median(_step_times(case, sgd, repeats + 1)[1:])
    refresh = Refresh(warmup_steps=repeats + 1, factor_every=10**6, inverse_every=10**6, growth=1)
    # The first step also allocates; the one after the last with curvature is due by the intervals.
    times = _step_times(case, lambda model: newton(model, refresh=refresh), 2 * repeats + 2)
    with_curvature, plain = statistics.median(times[1 : repeats + 1]), statistics.median(times[repeats + 2 :])
    return (plain + (with_curvature - plain) / CURVATURE_EVERY) / plain_sgd


def _step_times(case: Case, make: Callable[[nn.Module], torch.optim.Optimizer], steps: int) -> list[float]:
    """Return the seconds of each step."""
    model, batch = case.model(), case.batch_of(0)
    optimizer = make(model)
    times = []
    for number in range(steps):
        began = time.process_time()
        train(case, model, optimizer, number, batch)
        times.append(time.process_time() - began)
    return times
