"""The methods of the long benchmark: a registry, and what is tuned for each."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import pytorch_optimizer
import torch
from pytorch_optimizer.optimizer.utils.graft import LayerWiseGrafting
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from benchmarks.long.iterate_average import IterateAverage
from benchmarks.long.ours import NewtonTraining, settings_of
from benchmarks.long.schedule_free import ScheduleFreeTraining
from benchmarks.long.training import BaselineTraining, Training
from edge_client.curvature import ESTIMATORS
from edge_client.tasks import Task

Family = Literal["ours", "ours, tuned", "first-order", "second-order peer"]
Options = Mapping[str, float]
Start = Callable[[nn.Module, Task, Options, int, torch.device], Training]
_WARMUP = 0.05
"""Part of the batches over which the rate of a baseline rises."""
_MOMENTUM = 0.9


@dataclass(frozen=True)
class Method:
    """A way to train."""

    name: str
    """On the command line, and of a file."""
    title: str
    """In tables."""
    family: Family
    start: Start
    """Begins with a model, its task, options, the number of batches, and where it is trained."""
    tuned: str = ""
    """The option that is tuned; none where defaults are tried as they are."""
    grid: tuple[float, ...] = ()
    """Values of it that are tried first, ascending by one factor."""

    settings: Callable[[Options], Mapping[str, str]] = lambda _: {}
    """What a training would tell of itself today, beside its options: the defaults of ours."""

    @property
    def is_ours(self) -> bool:
        """Whether it is ours."""
        return self.family in ("ours", "ours, tuned")


def _trained(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _sgd(model: nn.Module, lr: float) -> list[Optimizer]:
    return [torch.optim.SGD(_trained(model), lr=lr, momentum=_MOMENTUM, weight_decay=5e-4)]


def _adamw(model: nn.Module, lr: float) -> list[Optimizer]:
    return [torch.optim.AdamW(_trained(model), lr=lr, weight_decay=0.01)]


def _muon(model: nn.Module, lr: float) -> list[Optimizer]:
    """Return Muon for the hidden layers and AdamW for the rest (https://kellerjordan.github.io/posts/muon).

    A filter is a row, as its author has it; updates are scaled to the size of AdamW's, so that one rate suits both
    (Liu et al. 2025, https://arxiv.org/abs/2502.16982).
    """
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    trained = _trained(model)
    matrices = [p for p in trained if p.dim() >= 2 and id(p) not in embeddings]
    first, last = matrices[:1], matrices[-1:]
    ends = {id(p) for p in [*last, *(first if first and first[0].dim() > 2 else [])]}
    hidden = [p for p in matrices if id(p) not in ends]
    chosen = {id(p) for p in hidden}
    rest = [p for p in trained if id(p) not in chosen]
    made: list[Optimizer] = [torch.optim.AdamW(rest, lr=lr, weight_decay=0.01)]
    if hidden:
        groups = [{"params": hidden, "use_muon": True}]
        made.append(pytorch_optimizer.Muon(groups, lr=lr, weight_decay=0.01, use_adjusted_lr=True))
    return made


def _soap(model: nn.Module, lr: float) -> list[Optimizer]:
    return [pytorch_optimizer.SOAP(_trained(model), lr=lr, weight_decay=0.01, precondition_frequency=10)]


def _shampoo(model: nn.Module, lr: float) -> list[Optimizer]:
    """Return distributed Shampoo with RMSProp's step sizes (Anil et al. 2020, https://arxiv.org/abs/2002.09018)."""
    return [
        pytorch_optimizer.ScalableShampoo(
            _trained(model),
            lr=lr,
            start_preconditioning_step=10,
            preconditioning_compute_steps=20,
            use_svd=True,
            graft_type=LayerWiseGrafting.RMSPROP,
        )
    ]


def cosine(batches: int) -> Callable[[int], float]:
    """Return the factor of the rate by step: a linear rise, then a half cosine down to nothing."""
    rise = max(1, round(_WARMUP * batches))

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / rise
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - rise) / max(1, batches - rise))))

    return factor


def _with_cosine(make: Callable[[nn.Module, float], Sequence[Optimizer]]) -> Start:
    def start(model: nn.Module, task: Task, options: Options, batches: int, device: torch.device) -> Training:
        optimizers = make(model, options["lr"])
        schedulers = [LambdaLR(optimizer, cosine(batches)) for optimizer in optimizers]
        return BaselineTraining(model, task, optimizers, schedulers, IterateAverage(task, device))

    return start


def _schedule_free(model: nn.Module, task: Task, options: Options, batches: int, device: torch.device) -> Training:  # noqa: ARG001
    optimizer = pytorch_optimizer.ScheduleFreeAdamW(
        _trained(model), lr=options["lr"], weight_decay=0.01, warmup_steps=max(1, round(_WARMUP * batches))
    )
    return ScheduleFreeTraining(model, task, optimizer)


def _ours(estimator: str) -> Start:
    def start(model: nn.Module, task: Task, options: Options, batches: int, device: torch.device) -> Training:  # noqa: ARG001
        return NewtonTraining(model, task, estimator, options)

    return start


def _around(value: float, factor: float = 3.0) -> tuple[float, ...]:
    return tuple(float(f"{value * factor**power:.2g}") for power in (-1, 0, 1))


def _of_ours(
    name: str, estimator: str, family: Family = "ours", tuned: str = "", grid: tuple[float, ...] = ()
) -> Method:
    title = f"EdgeNewton {estimator}" + (", tuned" if tuned else "")
    return Method(name, title, family, _ours(estimator), tuned, grid, lambda options: settings_of(estimator, options))


DEFAULT = "kfac"
METHODS: Mapping[str, Method] = {
    method.name: method
    for method in (
        _of_ours("kfac", "kfac"),
        Method("sgd", "SGD, momentum, cosine", "first-order", _with_cosine(_sgd), "lr", _around(0.1)),
        Method("adamw", "AdamW, cosine", "first-order", _with_cosine(_adamw), "lr", _around(0.005)),
        Method("schedule-free", "schedule-free AdamW", "first-order", _schedule_free, "lr", _around(0.01)),
        Method("muon", "Muon, cosine", "second-order peer", _with_cosine(_muon), "lr", _around(0.01)),
        Method("soap", "SOAP, cosine", "second-order peer", _with_cosine(_soap), "lr", _around(0.01)),
        Method("shampoo", "Shampoo, cosine", "second-order peer", _with_cosine(_shampoo), "lr", _around(0.0003)),
        _of_ours("eva", "eva"),
        _of_ours("foof", "foof"),
        _of_ours(
            "kfac-tuned",
            "kfac",
            "ours, tuned",
            "update_clip",
            _around(ESTIMATORS["kfac"].defaults.update_clip, 2.0),
        ),
    )
}
"""Of the untuned ones of ours, `DEFAULT` is the one that is compared with the baselines."""
