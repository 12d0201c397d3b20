"""Estimators against dense linear algebra, in float64, on small layers."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from edge_client.curvature import ESTIMATORS, CurvatureError, Eva, Kfac
from edge_client.curvature.capture import LayerCapture
from edge_client.curvature.layers import supported_layer
from edge_client.curvature.linalg import eigen, pack_symmetric, unpack_symmetric

DAMPING = 0.05

LAYERS = {
    "linear": (lambda bias: nn.Linear(5, 3, bias=bias), (7, 5)),
    "linear with a sequence": (lambda bias: nn.Linear(4, 3, bias=bias), (6, 5, 4)),
    "conv": (lambda bias: nn.Conv2d(2, 3, 3, bias=bias), (5, 2, 6, 6)),
    "conv with stride, padding and dilation": (
        lambda bias: nn.Conv2d(2, 4, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2), bias=bias),
        (4, 2, 7, 6),
    ),
    "conv with same padding": (lambda bias: nn.Conv2d(2, 3, 2, padding="same", bias=bias), (4, 2, 5, 5)),
    "conv with circular padding": (
        lambda bias: nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular", bias=bias),
        (4, 2, 5, 5),
    ),
}
every_layer = pytest.mark.parametrize(("build", "shape"), LAYERS.values(), ids=LAYERS)
with_and_without_bias = pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])


def run(build, shape, bias):
    """Return the layer, its captured inputs and gradients, and its gradient matrix, after one backward."""
    module = build(bias).double()
    layer = supported_layer("layer", module)
    capture = LayerCapture(layer, lambda: True)
    x = torch.randn(shape, dtype=torch.float64)
    output = module(x)
    target = torch.randn_like(output)
    (output - target).square().flatten(1).sum(1).mean().backward()
    a, g = capture.take()
    gradient = layer.to_matrix({name: parameter.grad for name, parameter in layer.parameters.items()})
    return layer, a, g, gradient


def dense_inverse_times(A, G, gradient):
    """Return (A ⊗ G + damping I)^-1 vec(gradient), with the Kronecker product formed; vec stacks columns."""
    dense = torch.kron(A, G) + DAMPING * torch.eye(len(A) * len(G), dtype=torch.float64)
    return torch.linalg.solve(dense, gradient.T.reshape(-1)).reshape(gradient.T.shape).T


@every_layer
@with_and_without_bias
def test_common_format_reproduces_the_gradient_of_autograd(build, shape, bias):
    layer, a, g, gradient = run(build, shape, bias)
    assert a.shape[:2] == g.shape[:2]
    assert (a.shape[2], g.shape[2]) == (layer.in_features, layer.out_features)
    torch.testing.assert_close(torch.einsum("bso,bsi->oi", g, a) / len(a), gradient)


@every_layer
@with_and_without_bias
def test_matrix_form_can_be_undone(build, shape, bias):
    layer, _, _, gradient = run(build, shape, bias)
    parts = layer.from_matrix(gradient)
    assert parts.keys() == layer.parameters.keys()
    for name, parameter in layer.parameters.items():
        torch.testing.assert_close(parts[name], parameter.grad)


@every_layer
@with_and_without_bias
def test_kfac_is_the_dense_inverse_of_its_factors(build, shape, bias):
    layer, a, g, gradient = run(build, shape, bias)
    estimator = Kfac(layer.in_features, layer.out_features, ema=0.9)
    estimator.update(estimator.statistics(a, g))
    estimator.refresh()
    A = sum(row.T @ row for row in a) / len(a)
    G = sum(row.T @ row for row in g) / (len(g) * g.shape[1])
    torch.testing.assert_close(estimator.precondition(gradient, DAMPING), dense_inverse_times(A, G, gradient))


@every_layer
@with_and_without_bias
def test_eva_is_the_dense_inverse_of_its_rank_one_factors(build, shape, bias):
    layer, a, g, gradient = run(build, shape, bias)
    # The mean of g is tiny for a fresh layer; a shift makes the rank-one part matter.
    g = g + 1.0
    estimator = Eva(layer.in_features, layer.out_features, ema=0.9)
    estimator.update(estimator.statistics(a, g))
    estimator.refresh()
    mean_a, mean_g = a.flatten(0, 1).mean(0), g.flatten(0, 1).mean(0)
    expected = dense_inverse_times(torch.outer(mean_a, mean_a), torch.outer(mean_g, mean_g), gradient)
    torch.testing.assert_close(estimator.precondition(gradient, DAMPING), expected)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_statistics_of_a_union_are_the_weighted_mean_of_the_parts(name):
    a, g = torch.randn(10, 3, 4, dtype=torch.float64), torch.randn(10, 3, 5, dtype=torch.float64)
    estimator = ESTIMATORS[name](4, 5, ema=0.9)
    whole = estimator.statistics(a, g)
    small, large = estimator.statistics(a[:3], g[:3]), estimator.statistics(a[3:], g[3:])
    for statistic, shape in estimator.statistic_shapes.items():
        assert tuple(whole[statistic].shape) == shape
        torch.testing.assert_close((3 * small[statistic] + 7 * large[statistic]) / 10, whole[statistic])


@pytest.mark.parametrize("name", ESTIMATORS)
def test_running_mean_begins_with_plain_averages_and_then_forgets(name):
    estimator = ESTIMATORS[name](2, 2, ema=0.5)
    batches = [
        {key: torch.full(shape, float(value)) for key, shape in estimator.statistic_shapes.items()}
        for value in (1, 3, 8)
    ]
    for batch in batches:
        estimator.update(batch)
    # 1, then (1 + 3) / 2, then 0.5 * 2 + 0.5 * 8
    state = estimator.state_dict()
    running = state["A"] if name == "kfac" else state["a"]
    torch.testing.assert_close(running, torch.full_like(running, 5.0))


@pytest.mark.parametrize("name", ESTIMATORS)
def test_before_any_statistics_the_damping_alone_is_inverted(name):
    gradient = torch.randn(3, 4)
    torch.testing.assert_close(ESTIMATORS[name](4, 3, ema=0.9).precondition(gradient, 0.1), gradient / 0.1)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_state_goes_on_bit_identically(name):
    def batch(seed):
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(6, 2, 4, generator=generator), torch.randn(6, 2, 3, generator=generator)

    one = ESTIMATORS[name](4, 3, ema=0.9)
    one.update(one.statistics(*batch(0)))
    one.refresh()
    other = ESTIMATORS[name](4, 3, ema=0.9)
    other.load_state_dict(one.state_dict())
    gradient = torch.randn(3, 4)
    for estimator in (one, other):
        estimator.update(estimator.statistics(*batch(1)))
        estimator.refresh()
    assert torch.equal(one.precondition(gradient, 0.1), other.precondition(gradient, 0.1))


@pytest.mark.parametrize("scale", [0.0, 1e-20, 1.0, 1e15])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_degenerate_statistics_give_finite_directions(name, scale):
    a = torch.ones(4, 1, 6) * scale  # rank one at most
    g = torch.ones(4, 1, 5) * scale
    estimator = ESTIMATORS[name](6, 5, ema=0.9)
    estimator.update(estimator.statistics(a, g))
    estimator.refresh()
    assert estimator.precondition(torch.randn(5, 6), 1e-3).isfinite().all()


@given(size=st.integers(1, 12))
def test_packing_symmetric_matrices_loses_nothing(size):
    matrix = torch.randn(size, size)
    matrix = matrix + matrix.T
    packed = pack_symmetric(matrix)
    assert packed.shape == (size * (size + 1) // 2,)
    assert torch.equal(unpack_symmetric(packed, size), matrix)


def test_eigen_refuses_what_is_not_finite():
    with pytest.raises(CurvatureError, match="not finite"):
        eigen(torch.tensor([[1.0, float("nan")], [0.0, 1.0]]))


@pytest.mark.parametrize(
    "module",
    [nn.BatchNorm2d(3), nn.Conv2d(4, 4, 3, groups=2), nn.LSTM(3, 3), nn.ReLU(), nn.Linear(3, 3).requires_grad_(False)],
    ids=lambda module: type(module).__name__,
)
def test_unsupported_and_frozen_layers_are_left_alone(module):
    assert supported_layer("layer", module) is None


def test_a_module_used_twice_shares_its_weight_between_the_uses():
    module = nn.Linear(3, 3).double()
    layer = supported_layer("layer", module)
    capture = LayerCapture(layer, lambda: True)
    module(module(torch.randn(5, 3, dtype=torch.float64))).square().sum(1).mean().backward()
    a, g = capture.take()
    assert a.shape == (5, 2, 4)
    gradient = layer.to_matrix({name: parameter.grad for name, parameter in layer.parameters.items()})
    torch.testing.assert_close(torch.einsum("bso,bsi->oi", g, a) / 5, gradient)
