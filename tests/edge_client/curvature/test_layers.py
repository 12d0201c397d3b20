"""Every layer type in the common format, against autograd."""

import pytest
import torch
from cases import CASES, Case, dense_rows, pass_of, run
from torch import nn

from edge_client.curvature.capture import LayerCapture
from edge_client.curvature.layers import supported_layer

every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@every_case
def test_common_format_reproduces_the_gradient_of_autograd(case):
    result = run(case)
    rows, g, shape = dense_rows(result.captured), result.captured.g, result.layer.shape
    assert rows.shape[:3] == g.shape[:3]
    assert (shape.blocks, shape.out_features, shape.in_features) == (g.shape[0], g.shape[3], rows.shape[3])
    assert result.gradient.shape == (shape.blocks, shape.out_features, shape.in_features)
    torch.testing.assert_close(torch.einsum("kbso,kbsi->koi", g, rows) / g.shape[1], result.gradient)


@every_case
def test_matrix_form_can_be_undone(case):
    result = run(case)
    parts = result.layer.from_matrix(result.gradient)
    assert parts.keys() == result.layer.parameters.keys()
    for name, parameter in result.layer.parameters.items():
        torch.testing.assert_close(parts[name], parameter.grad)


@pytest.mark.parametrize("name", ["linear", "conv2d", "embedding", "layer norm"])
def test_what_a_model_folds_into_the_batch_shares_the_weight(name):
    result = run(CASES[name], batch=12, samples=4)
    rows, g = dense_rows(result.captured), result.captured.g
    assert g.shape[1] == rows.shape[1] == 4
    torch.testing.assert_close(torch.einsum("kbso,kbsi->koi", g, rows) / 4, result.gradient)


def test_what_fits_no_batch_counts_as_one_sample():
    positions = run(Case(lambda: nn.Embedding(5, 3), ()), batch=5, samples=16)
    assert positions.captured.g.shape == (1, 1, 5, 3)
    # Sixteen samples' mean gradient stands for gradients that are independent.
    torch.testing.assert_close(
        torch.einsum("kbso,kbsi->koi", positions.captured.g, dense_rows(positions.captured)) / 4, positions.gradient
    )


def capture_of(module, passes):
    layer = supported_layer("layer", module)
    return layer, LayerCapture(layer, lambda: passes[-1], lambda: True, takes_backward=True)


def test_a_module_used_twice_shares_its_weight_between_the_uses():
    module = nn.Linear(3, 3).double()
    layer, capture = capture_of(module, [pass_of(5)])
    module(module(torch.randn(5, 3, dtype=torch.float64))).square().sum(1).mean().backward()
    (captured,) = capture.take()
    assert captured.g.shape == (1, 5, 2, 3)
    gradient = layer.to_matrix({name: parameter.grad for name, parameter in layer.parameters.items()})
    torch.testing.assert_close(torch.einsum("kbso,kbsi->koi", captured.g, dense_rows(captured)) / 5, gradient)


def test_accumulated_passes_have_the_gradients_of_the_whole_batch():
    x = torch.randn(6, 3, dtype=torch.float64)
    module = nn.Linear(3, 2).double()
    passes = [pass_of(6)]
    _, capture = capture_of(module, passes)
    module(x).square().sum(1).mean().backward()
    (whole,) = capture.take()
    for part in (x[:2], x[2:]):
        passes.append(pass_of(len(part)))
        (module(part).square().sum(1).sum() / 6).backward()
    parts = capture.take()
    assert [part.samples for part in parts] == [2, 4]
    torch.testing.assert_close(torch.cat([part.g for part in parts], dim=1), whole.g)


def test_running_batch_norm_uses_the_running_moments():
    module = nn.BatchNorm1d(3).double()
    module(torch.randn(50, 3, dtype=torch.float64) * 3 + 1)
    module.eval()
    layer = supported_layer("layer", module)
    x = torch.randn(4, 3, dtype=torch.float64)
    expected = (x - module.running_mean) / (module.running_var + module.eps).sqrt()
    torch.testing.assert_close(layer.inputs(x).rows[:, :, 0, 0], expected.T)


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    "module",
    [
        nn.LSTM(3, 3),
        nn.MultiheadAttention(4, 2),
        nn.ReLU(),
        nn.ConvTranspose2d(2, 2, 2),
        Doubled(3, 3),
        nn.Linear(3, 3).requires_grad_(False),
        nn.LayerNorm(3, elementwise_affine=False),
    ],
    ids=lambda module: type(module).__name__,
)
def test_unsupported_and_frozen_layers_are_left_alone(module):
    assert supported_layer("layer", module) is None


def test_low_precision_activations_become_the_weights_dtype():
    module = nn.Linear(3, 2)
    layer, capture = capture_of(module, [pass_of(4)])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = module(torch.randn(4, 3))
    assert output.dtype is torch.bfloat16
    output.float().square().sum(1).mean().backward()
    (captured,) = capture.take()
    assert captured.g.dtype is dense_rows(captured).dtype is torch.float32
    assert layer.shape.in_features == 4
