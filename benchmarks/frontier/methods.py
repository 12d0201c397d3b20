"""All methods of the frontier benchmark: a registry, and what the searches of the baselines start from."""

from collections.abc import Callable, Mapping

import pytorch_optimizer
import torch
from torch import nn

from benchmarks.convergence.learning_tasks import LearningTask
from benchmarks.convergence.methods import muon
from benchmarks.frontier.compression import Compression
from benchmarks.frontier.interface import Grid, Method, Options, Recipe, Run
from benchmarks.frontier.local_steps import LocalRun, Optimizers, Plan
from benchmarks.frontier.our_methods import our_methods
from benchmarks.frontier.server_adam import ServerAdam
from benchmarks.frontier.synchronous import SynchronousRun
from edge_client import NewtonOptimizer, TrustRegion

Space = Mapping[str, Grid]
Inner = Callable[[nn.Module, Options], Optimizers]
Outer = Callable[[nn.Module, Options], torch.optim.Optimizer]

_RATES = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
_STEPS = (5, 10, 20, 40, 80)


def _rate(start: float) -> Grid:
    return Grid(_RATES, start)


def _steps(start: float = 20) -> Grid:
    return Grid(_STEPS, start)


_RANKS = Grid((1, 2, 4), 1)
_MOMENTA = Grid((0.8, 0.9, 0.95), 0.9)
_FRACTIONS = Grid((0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2), 0.05)
_DECAYS = Grid((0.7, 0.9, 0.95, 1.0), 0.95)


# ---------------------------------------------------------------- what steps


def _sgd(model: nn.Module, options: Options) -> Optimizers:
    return [torch.optim.SGD(model.parameters(), lr=options["lr"], momentum=options.get("momentum", 0.9))]


def _adamw(model: nn.Module, options: Options) -> Optimizers:
    betas = (0.9, options.get("beta2", 0.999))
    return [torch.optim.AdamW(model.parameters(), lr=options["lr"], betas=betas)]


def _muon(model: nn.Module, options: Options) -> Optimizers:
    return muon(model, options["lr"], options.get("momentum", 0.95))


def _soap(model: nn.Module, options: Options) -> Optimizers:
    betas = (options.get("momentum", 0.95), 0.95)
    return [
        pytorch_optimizer.SOAP(
            model.parameters(), lr=options["lr"], betas=betas, weight_decay=0.0, precondition_frequency=1
        )
    ]


def _newton(model: nn.Module, options: Options) -> Optimizers:
    trust = TrustRegion(update_clip=options["update_clip"], kl_clip=options["kl_clip"])
    return [NewtonOptimizer(model, momentum=options["momentum"], trust=trust)]


def _average(model: nn.Module, options: Options) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=options.get("outer_lr", 1.0))


def _heavy_ball(model: nn.Module, options: Options) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=options["outer_lr"], momentum=options["outer_momentum"])


def _nesterov(model: nn.Module, options: Options) -> torch.optim.Optimizer:
    momentum = options["outer_momentum"]
    return torch.optim.SGD(model.parameters(), lr=options["outer_lr"], momentum=momentum, nesterov=momentum > 0)


def _server_adam(model: nn.Module, options: Options) -> torch.optim.Optimizer:
    return ServerAdam(model.parameters(), lr=options["outer_lr"])


# ---------------------------------------------------------------- when it is exchanged


def compression(codec: str, options: Options) -> Compression:
    """Return a codec with what is searched of it."""
    return Compression(
        codec, int(options.get("rank", 1)), options.get("fraction", 0.01), options.get("error_decay", 1.0)
    )


def every_batch(name: str, inner: Inner, codec: str, space: Space) -> Method:
    """Return a baseline that exchanges gradients after every batch."""

    def start(model: nn.Module, task: LearningTask, options: Options, seed: int) -> Run:
        return SynchronousRun(model, task, seed, inner(model, options), compression(codec, options))

    return Method(f"{name}, {codec}", "baseline", codec != "fp32", start, space, Recipe(inner, None, codec))


def local(name: str, inner: Inner, outer: Outer, codec: str, space: Space, *, keeps_inner: bool = True) -> Method:
    """Return a baseline that exchanges updates after several batches, whose number is the option `steps`."""

    def start(model: nn.Module, task: LearningTask, options: Options, seed: int) -> Run:
        plan = Plan(
            int(options["steps"]),
            lambda device: inner(device, options),
            lambda shared: outer(shared, options),
            compression(codec, options),
            keeps_inner,
        )
        return LocalRun(model, task, seed, plan)

    recipe = Recipe(inner, outer, codec, keeps_inner)
    return Method(f"{name}, {codec}", "baseline", codec != "fp32", start, space, recipe)


# ---------------------------------------------------------------- the baselines


def _synchronous() -> list[Method]:
    ways: list[tuple[str, Inner, Space]] = [
        ("SGD", _sgd, {"lr": _rate(0.1), "momentum": _MOMENTA}),
        ("AdamW", _adamw, {"lr": _rate(0.01), "beta2": Grid((0.95, 0.99, 0.999), 0.99)}),
        ("Muon", _muon, {"lr": _rate(0.02), "momentum": _MOMENTA}),
        ("SOAP", _soap, {"lr": _rate(0.02), "momentum": _MOMENTA}),
    ]
    return [
        every_batch(name, inner, codec, space if codec != "powersgd" else {**space, "rank": _RANKS})
        for name, inner, space in ways
        for codec in ("fp32", "int8", "int4", "powersgd")
    ]


def _federated() -> list[Method]:
    ways: list[tuple[str, Outer, Space]] = [
        ("FedAvg", _average, {}),
        ("FedAdam", _server_adam, {"outer_lr": _rate(0.02)}),
        (
            "FedAvgM",
            _heavy_ball,
            {"outer_momentum": Grid((0.3, 0.5, 0.7, 0.9), 0.7), "outer_lr": Grid((0.3, 0.5, 0.7, 1.0), 1.0)},
        ),
    ]
    # The devices' momentum starts anew in each round, as where a client keeps nothing between two rounds.
    return [
        local(name, _sgd, outer, codec, {"lr": _rate(0.1), "steps": _steps(10), **space}, keeps_inner=False)
        for name, outer, space in ways
        for codec in ("fp32", "int8", "int4")
    ]


def _outer(momentum: float) -> Space:
    return {
        "outer_lr": Grid((0.3, 0.5, 0.7, 0.85, 1.0), 0.7),
        "outer_momentum": Grid((0.0, 0.3, 0.6, 0.8, 0.9), momentum),
    }


def _low_communication() -> list[Method]:
    """Return DiLoCo (arXiv 2311.08105), MuLoCo (2505.23725), SparseLoCo (2508.15706), and the latter two together."""
    adamw: Space = {"lr": _rate(0.005), "steps": _steps()}
    muon_inside: Space = {"lr": _rate(0.02), "steps": _steps()}
    # Error feedback that forgets stands for the outer momentum, as SparseLoCo has it.
    sparse: Space = {"fraction": _FRACTIONS, "error_decay": _DECAYS}
    summed: Space = {"outer_lr": Grid((0.5, 0.7, 1.0, 1.4), 1.0)}
    both: Space = {**summed, "outer_momentum": Grid((0.0, 0.3, 0.6, 0.8), 0.0)}
    return [
        *[local("DiLoCo", _adamw, _nesterov, codec, {**adamw, **_outer(0.6)}) for codec in ("fp32", "int4")],
        *[local("MuLoCo", _muon, _nesterov, codec, {**muon_inside, **_outer(0.6)}) for codec in ("int4", "ternary")],
        *[
            local("SparseLoCo", _adamw, _average, codec, {**adamw, **sparse, **summed})
            for codec in ("sparse2", "sparse1")
        ],
        *[
            local("Muon SparseLoCo", _muon, _nesterov, codec, {**muon_inside, **sparse, **both})
            for codec in ("sparse2", "sparse4", "sparse1")
        ],
    ]


def _second_order() -> list[Method]:
    """Return local K-FAC steps with plain averages of the parameters, as in LocalNewton and FedPM."""
    space: Space = {
        "update_clip": Grid((0.0125, 0.025, 0.05, 0.1, 0.2, 0.4), 0.1),
        "steps": Grid((2, 5, 10, 20, 40, 80), 10),
        "kl_clip": Grid((0.0001, 0.0003, 0.001, 0.003, 0.01), 0.003),
        "momentum": Grid((0.0, 0.5, 0.7, 0.9), 0.7),
    }
    return [local("LocalNewton", _newton, _average, codec, space) for codec in ("fp32", "int8")]


METHODS: list[Method] = [*our_methods(), *_synchronous(), *_federated(), *_low_communication(), *_second_order()]
