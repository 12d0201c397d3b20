"""K-FAC's factors against dense Fisher and Gauss-Newton blocks of autograd, where theory says they are equal."""

import pytest
import torch
from cases import dense_rows, pass_of
from torch import nn
from torch.func import functional_call, jacrev
from torch.nn.functional import cross_entropy

from edge_client.curvature.capture import LayerCapture, sample_gradients
from edge_client.curvature.inputs import gradient_second_moment
from edge_client.curvature.layers import supported_layer
from edge_client.curvature.likelihood import sample_targets


class Pooled(nn.Module):
    """A linear network whose outputs are averaged over the positions of a sequence."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 4, bias=False), nn.Linear(4, 2, bias=False)

    def forward(self, x):
        return self.second(self.first(x)).mean(dim=1)


def kronecker(A, G):
    """Return A ⊗ G for vectors that stack the rows of `[out, in]`: G ⊗ A in the order of `flatten`."""
    return torch.kron(G, A)


def factors(model, name, x, losses, sharing):
    """Return A, and the mean over `losses` (given outputs and weight) of G, of one layer."""
    module = model.get_submodule(name)
    layer = supported_layer(name, module)
    A, G = 0.0, 0.0
    for loss_of, weight in losses:
        forward_pass = pass_of(len(x))
        capture = LayerCapture(layer, lambda on=forward_pass: on, lambda: True, takes_backward=False)
        sample_gradients([capture], loss_of(model(x)))
        (captured,) = capture.take()
        capture.remove()
        A = captured.a.second_moment(sharing)[0]
        G = G + weight * gradient_second_moment(captured.g, sharing)[0]
    return A, G


def weight_jacobian(model, name, x):
    """Return d outputs / d weight, `[outputs, parameters]`."""
    parameters = {key: value.detach() for key, value in model.named_parameters()}
    key = f"{name}.weight"
    jacobian = jacrev(lambda w: functional_call(model, parameters | {key: w}, (x,)).flatten())(parameters[key])
    return jacobian.flatten(1)


def squared_error_probes(outputs, batch):
    """Return losses whose output gradients are the columns of a root of the identity: their mean Fisher is the GGN."""
    size = outputs.shape[-1]
    for index in range(size):
        offset = torch.zeros(size, dtype=outputs.dtype)
        offset[index] = size**0.5
        target = (outputs + offset).detach()
        yield (lambda o, target=target: 0.5 * (o - target).square().sum() / batch), 1 / size


def test_one_sample_without_weight_sharing_is_exact_for_the_empirical_fisher():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3, bias=False), nn.Tanh(), nn.Linear(3, 5, bias=False)).double()
    x, y = torch.randn(1, 4, dtype=torch.float64), torch.tensor([2])
    cross_entropy(model(x), y).backward()
    for name in ("0", "2"):
        A, G = factors(model, name, x, [(lambda o: cross_entropy(o, y), 1.0)], "expand")
        gradient = model.get_submodule(name).weight.grad.flatten()
        torch.testing.assert_close(kronecker(A, G), torch.outer(gradient, gradient))


def test_one_sample_is_exact_for_the_generalised_gauss_newton_matrix_of_cross_entropy():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3, bias=False), nn.Tanh(), nn.Linear(3, 5, bias=False)).double()
    x = torch.randn(1, 4, dtype=torch.float64)
    p = model(x).softmax(1).detach()[0]
    labels = [(lambda o, c=c: cross_entropy(o, torch.tensor([c])), p[c]) for c in range(5)]
    hessian = torch.diag(p) - torch.outer(p, p)
    for name in ("0", "2"):
        A, G = factors(model, name, x, labels, "expand")
        J = weight_jacobian(model, name, x)
        torch.testing.assert_close(kronecker(A, G), J.T @ hessian @ J)


def test_expand_is_exact_for_a_linear_network_that_predicts_every_position():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(4, 2, bias=False)).double()
    x = torch.randn(5, 6, 3, dtype=torch.float64)
    for name in ("0", "1"):
        A, G = factors(model, name, x, list(squared_error_probes(model(x), 5)), "expand")
        J = weight_jacobian(model, name, x)
        torch.testing.assert_close(kronecker(A, G), J.T @ J / 5)


def test_reduce_is_exact_for_a_linear_network_that_pools_its_positions():
    torch.manual_seed(0)
    model = Pooled().double()
    x = torch.randn(5, 6, 3, dtype=torch.float64)
    for name in ("first", "second"):
        probes = list(squared_error_probes(model(x), 5))
        A, G = factors(model, name, x, probes, "reduce")
        J = weight_jacobian(model, name, x)
        torch.testing.assert_close(kronecker(A, G), J.T @ J / 5)
        # And `expand` is not, so that the test can tell them apart.
        A, G = factors(model, name, x, probes, "expand")
        assert not torch.allclose(kronecker(A, G), J.T @ J / 5, rtol=0.05)


@pytest.mark.parametrize("likelihood", ["categorical", "bernoulli", "normal"])
def test_sampled_targets_give_the_fisher_of_the_outputs(likelihood):
    torch.manual_seed(0)
    outputs = torch.randn(1, 4, dtype=torch.float64)
    draws = 40_000
    repeated = outputs.expand(draws, 4).clone().requires_grad_()
    targets = sample_targets(repeated, likelihood)
    if likelihood == "categorical":
        cross_entropy(repeated, targets, reduction="sum").backward()
        p = outputs.softmax(1)[0]
        expected = torch.diag(p) - torch.outer(p, p)
    elif likelihood == "bernoulli":
        nn.functional.binary_cross_entropy_with_logits(repeated, targets, reduction="sum").backward()
        p = outputs.sigmoid()[0]
        expected = torch.diag(p * (1 - p))
    else:
        (0.5 * (repeated - targets).square().sum()).backward()
        expected = torch.eye(4, dtype=torch.float64)
    fisher = repeated.grad.T @ repeated.grad / draws
    torch.testing.assert_close(fisher, expected, rtol=0, atol=0.03)


def test_moments_of_one_hot_inputs_are_those_of_the_dense_ones():
    from cases import CASES, run

    captured = run(CASES["embedding"]).captured
    rows = dense_rows(captured)[0]
    for sharing, dense in (("expand", rows.flatten(0, 1)), ("reduce", rows.mean(dim=1))):
        expected = (dense.T @ dense / len(rows)).diagonal()
        torch.testing.assert_close(captured.a.second_moment(sharing)[0], expected)
    torch.testing.assert_close(captured.a.mean()[0], rows.mean(dim=(0, 1)))
