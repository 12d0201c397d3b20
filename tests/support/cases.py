"""Layers with their inputs, over which the curvature is tested in float64."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edge_client.curvature.capture import Captured, LayerCapture
from edge_client.curvature.forward_pass import ForwardPass
from edge_client.curvature.inputs import DenseInputs
from edge_client.curvature.layers import Layer, supported_layer

BATCH = 6


@dataclass(frozen=True)
class Case:
    """A layer, and the shape of one sample of its input (a number of tokens for an embedding)."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]

    def inputs(self, batch: int = BATCH) -> Tensor:
        if isinstance(self.build(), nn.Embedding):
            return torch.randint(0, 5, (batch, *self.shape))
        return torch.randn(batch, *self.shape, dtype=torch.float64)

    def module(self) -> nn.Module:
        torch.manual_seed(3)
        module = self.build().double()
        for parameter in module.parameters():  # a fresh normalisation layer scales by 1, which would hide errors
            parameter.data.add_(0.3 * torch.randn_like(parameter))
        return module


CASES = {
    "linear": Case(lambda: nn.Linear(5, 3), (5,)),
    "linear, no bias": Case(lambda: nn.Linear(5, 3, bias=False), (5,)),
    "linear on a sequence": Case(lambda: nn.Linear(4, 3), (5, 4)),
    "linear on a picture of features": Case(lambda: nn.Linear(4, 3), (2, 3, 4)),
    "conv1d": Case(lambda: nn.Conv1d(2, 3, 3, stride=2, padding=2, dilation=2), (2, 9)),
    "conv1d, same padding, no bias": Case(lambda: nn.Conv1d(2, 3, 3, padding="same", bias=False), (2, 7)),
    "conv2d": Case(lambda: nn.Conv2d(2, 3, 3), (2, 6, 6)),
    "conv2d, no bias": Case(lambda: nn.Conv2d(2, 3, 3, bias=False), (2, 6, 6)),
    "conv2d, stride, padding and dilation": Case(
        lambda: nn.Conv2d(2, 4, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2)), (2, 7, 6)
    ),
    "conv2d, circular padding": Case(lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), (2, 5, 5)),
    "conv2d, groups": Case(lambda: nn.Conv2d(4, 6, 3, groups=2), (4, 5, 5)),
    "conv2d, depthwise": Case(lambda: nn.Conv2d(3, 6, 3, groups=3, padding=1), (3, 5, 5)),
    "embedding": Case(lambda: nn.Embedding(5, 3), (4,)),
    "layer norm": Case(lambda: nn.LayerNorm(4), (4,)),
    "layer norm on a sequence": Case(lambda: nn.LayerNorm(4), (3, 4)),
    "layer norm over two dimensions": Case(lambda: nn.LayerNorm((2, 3)), (2, 3)),
    "rms norm": Case(lambda: nn.RMSNorm(4), (3, 4)),
    "group norm": Case(lambda: nn.GroupNorm(2, 4), (4, 3, 3)),
    "batch norm 1d": Case(lambda: nn.BatchNorm1d(4), (4,)),
    "batch norm 2d": Case(lambda: nn.BatchNorm2d(3), (3, 4, 4)),
}


@dataclass(frozen=True)
class Run:
    """A layer after one forward and backward."""

    layer: Layer
    captured: Captured
    gradient: Tensor


def run(case: Case, batch: int = BATCH, samples: int | None = None) -> Run:
    """Run a case; the loss is a mean over the batch (or over `samples` samples, folded into the batch)."""
    torch.manual_seed(0)
    module = case.module()
    layer = supported_layer("layer", module)
    assert layer is not None
    forward_pass = pass_of(samples or batch)
    forward_pass.note_gradient(samples or batch)  # of other layers
    capture = LayerCapture(layer, lambda: forward_pass, lambda: True, takes_backward=True)
    output = module(case.inputs(batch))
    (output - torch.randn_like(output)).square().sum().div(samples or batch).backward()
    (captured,) = capture.take()
    return Run(layer, captured, matrix_of(layer))


def pass_of(samples: int) -> ForwardPass:
    """Return the forward of a model that was called with so many samples."""
    return ForwardPass(lambda _: None, samples, is_whole=True)


def matrix_of(layer: Layer) -> Tensor:
    """Return the layer's gradient as matrices."""
    return layer.to_matrix({name: parameter.grad for name, parameter in layer.parameters.items()})


def dense_rows(captured: Captured) -> Tensor:
    """Return the inputs as `[blocks, batch, shared, in]`, whatever their form."""
    a = captured.a.formed
    if isinstance(a, DenseInputs):
        ones = a.rows.new_ones(*a.rows.shape[:-1], 1)
        return torch.cat([a.rows, ones], dim=-1) if a.has_bias else a.rows
    return torch.nn.functional.one_hot(a.indices, a.size).double().unsqueeze(0)
