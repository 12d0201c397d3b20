"""Our methods of the frontier benchmark, with what is searched for them."""

from collections.abc import Mapping
from typing import Any

from edgenewton.v1.codecs import CodecChoice
from torch import nn

from benchmarks.convergence.learning_tasks import LearningTask
from benchmarks.frontier.interface import Grid, Method, Options, Run
from benchmarks.frontier.lockstep import LockstepExchange
from benchmarks.frontier.ours import OursRun
from edge_client import Refresh, TrustRegion
from edge_client.curvature.probe import Probe
from edge_client.sync import LocalSteps, Outer, Own, ProbeCurvature, Probed, SyncPlan

Space = Mapping[str, Grid]

_TRUST: Space = {
    "update_clip": Grid((0.0125, 0.025, 0.05, 0.1, 0.2, 0.4), 0.05),
    "kl_clip": Grid((0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03), 0.003),
}
_OWN = 0.0
"""Share of the probe that stands for the device's own curvature alone."""


def ours_every_batch(codec: str) -> Method:
    """Return our gradients after every batch, with the curvature of a common probe."""

    def start(model: nn.Module, task: LearningTask, options: Options, seed: int) -> Run:
        return OursRun(
            model,
            task,
            seed,
            CodecChoice(codec),
            lambda exchange, probe: ProbeCurvature(probe, exchange),
            _trusted(options) | {"refresh": Refresh(warmup_steps=1, growth=1.5)},
        )

    return Method(
        f"EdgeNewton, {codec}",
        "ours",
        is_compressed=True,
        start=start,
        space={**_TRUST, "momentum": Grid((0.5, 0.7, 0.9), 0.7)},
    )


def ours_local(codec: str, space: Space) -> Method:
    """Return our local steps."""

    def start(model: nn.Module, task: LearningTask, options: Options, seed: int) -> Run:
        def plan(exchange: LockstepExchange, probe: Probe) -> SyncPlan:
            share = options["share"]
            scope = Own() if share == _OWN else Probed(probe, share)
            outer = Outer(options["outer_lr"], options["outer_momentum"])
            return LocalSteps(exchange, int(options["steps"]), outer=outer, scope=scope)

        fraction = options.get("fraction", CodecChoice.topk_fraction)
        return OursRun(model, task, seed, CodecChoice(codec, topk_fraction=fraction), plan, _trusted(options))

    ours: Space = {
        **space,
        "update_clip": _TRUST["update_clip"],
        "steps": Grid((2, 5, 10, 20, 40, 80), 20),
        "kl_clip": _TRUST["kl_clip"],
        "share": Grid((_OWN, 0.2, 0.5), 0.5),
        "outer_lr": Grid((0.7, 1.0, 1.3), 1.0),
        "outer_momentum": Grid((0.0, 0.3, 0.6), 0.0),
    }
    return Method(f"EdgeNewton local, {codec}", "ours", is_compressed=True, start=start, space=ours)


def _trusted(options: Options) -> dict[str, Any]:
    trust = TrustRegion(kl_clip=options["kl_clip"], update_clip=options["update_clip"])
    return {"trust": trust} | ({"momentum": options["momentum"]} if "momentum" in options else {})


def our_methods() -> list[Method]:
    """Return ours: gradients after every batch, and local steps, each with several codecs."""
    sparse: Space = {"fraction": Grid((0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2), 0.02)}
    return [
        *[ours_every_batch(codec) for codec in ("int4", "ternary")],
        ours_local("int4", {}),
        ours_local("sparse1", sparse),
    ]
