"""The curvature statistics of layers as tensors of the exchange, and the layers that are to do without."""

from collections.abc import Sequence

import torch
from edgenewton.v1.tensor_spec import TensorSpec
from torch import Tensor

from edge_client.curvature.estimators import Statistics
from edge_client.curvature.preconditioner import PreconditionedLayer
from edge_client.devices import to_device
from edge_client.exchange import StepResult, TensorKey
from edge_client.sync.model_tensors import spec_of

DOUBTS: TensorKey = ("curvature", "layers without curvature")
"""What tells, per layer, whether a device doubts its curvature: 0.0 or 1.0, a float32 vector."""


def statistic_key(state: PreconditionedLayer, name: str) -> TensorKey:
    """Return the key under which a layer's statistic is exchanged."""
    return "curvature", f"{state.name}:{name}"


def statistic_specs(layers: Sequence[PreconditionedLayer]) -> list[TensorSpec]:
    """Return what describes the layers' statistics, and the doubts, to the exchange."""
    statistics = [
        spec_of(
            statistic_key(state, name),
            shape,
            state.layer.weight,
            structure=state.estimator.statistic_structures.get(name, ""),
        )
        for state in layers
        for name, shape in state.estimator.statistic_shapes.items()
    ]
    kind, name = DOUBTS
    return [*statistics, TensorSpec(name, (len(layers),), kind=kind)] if layers else []


def statistics_in(result: StepResult, layers: Sequence[PreconditionedLayer]) -> dict[str, Statistics]:
    """Return the statistics that a step has of each layer, where its weight is."""
    return {
        state.name: {
            name: to_device(result.tensors[statistic_key(state, name)], state.layer.weight.device)
            for name in state.estimator.statistic_shapes
        }
        for state in layers
    }


def doubts_of(layers: Sequence[PreconditionedLayer]) -> Tensor:
    """Return which layers' curvature is to be given up: all devices do it in the same step."""
    return torch.tensor([float(state.is_doubted) for state in layers])


def give_up_doubted_in(result: StepResult, layers: Sequence[PreconditionedLayer]) -> None:
    """Let the layers do without curvature that any device doubts."""
    doubts = result.tensors.get(DOUBTS)
    if doubts is not None:
        for state, doubt in zip(layers, doubts.tolist(), strict=True):
            state.is_explained = state.is_explained and not doubt
