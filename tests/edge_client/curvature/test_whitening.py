"""Whitened gradients against dense Kronecker algebra."""

import pytest
import torch
from cases import CASES, run

from edge_client.curvature import ESTIMATORS, EstimatorOptions
from edge_client.curvature.layers import MatrixShape
from edge_client.curvature.whitening import (
    Whitening,
    restore_gradient,
    root_in_basis,
    root_of,
    whiten_gradient,
)

DAMPING = 0.05


def refreshed(name, result, damping=DAMPING, **options):
    estimator = ESTIMATORS[name](result.layer.shape, EstimatorOptions(**options))
    assert estimator.whitening() is None
    estimator.update(estimator.statistics(result.captured.a, result.captured.g), result.gradient)
    estimator.refresh(damping)
    return estimator


def applied_inverse(estimator, shape):
    """Return the matrix of `precondition` for each block, `[blocks, out * in, out * in]`, from its images."""
    size = shape.out_features * shape.in_features
    units = torch.eye(size, dtype=torch.float64).reshape(size, 1, shape.out_features, shape.in_features)
    images = [estimator.precondition(unit.expand(shape.of_gradient)).flatten(1) for unit in units]
    return torch.stack(images, dim=-1)


def positive(size, condition, dtype, blocks=2):
    """Return symmetric matrices of a condition number."""
    basis = torch.linalg.qr(torch.randn(blocks, size, size, dtype=torch.float64)).Q
    values = torch.logspace(0, -torch.log10(torch.tensor(condition)).item(), size, dtype=torch.float64)
    return ((basis * values) @ basis.mT).to(dtype)


@pytest.mark.parametrize("name", ["kfac", "inputs_and_gradients", "foof"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_norm_of_a_whitened_gradient_is_what_its_step_explains(name, case):
    result = run(case)
    estimator = refreshed(name, result)
    by = estimator.whitening()
    inverse = applied_inverse(estimator, result.layer.shape)
    torch.manual_seed(1)
    constants = []
    for _ in range(3):
        gradient = torch.randn_like(result.gradient)
        of_blocks = gradient.flatten(1).unsqueeze(1) @ inverse @ gradient.flatten(1).unsqueeze(2)
        constants.append(of_blocks.sum() / whiten_gradient(gradient, by).square().sum())
    torch.testing.assert_close(torch.stack(constants), constants[0].expand(3))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_root_is_lower_triangular_and_of_unit_scale(case):
    result = run(case)
    for inversion in ("cholesky", "eigen"):
        for root in refreshed("kfac", result, inversion=inversion).whitening():
            diagonal = root if root.dim() == 2 else root.diagonal(dim1=1, dim2=2)
            assert diagonal.square().mean().item() == pytest.approx(1)
            assert (diagonal > 0).all()
            assert root.dim() == 2 or torch.equal(root, root.tril())
    assert (refreshed("kfac", result).whitening().A.dim() == 2) == result.layer.shape.one_hot


def test_the_eigenbasis_gives_the_inverse_where_that_is_a_kronecker_product():
    result = run(CASES["linear"])
    estimator = refreshed("kfac", result, inversion="eigen", damping=1e-14)
    A, G = estimator.whitening()
    rebuilt = torch.kron((G @ G.mT)[0], (A @ A.mT)[0])
    inverse = applied_inverse(estimator, result.layer.shape)[0]
    torch.testing.assert_close(rebuilt / rebuilt.norm(), inverse / inverse.norm(), rtol=1e-4, atol=1e-8)


def test_the_eigenbasis_gives_products_that_are_near_the_inverse_in_between():
    result = run(CASES["linear"])
    estimator = refreshed("kfac", result, inversion="eigen")
    A, G = estimator.whitening()
    inverse = applied_inverse(estimator, result.layer.shape)[0]
    whitened = torch.linalg.solve(torch.kron((G @ G.mT)[0], (A @ A.mT)[0]), inverse)
    before, after = (torch.linalg.eigvals(matrix).real for matrix in (inverse, whitened))
    assert after.max() / after.min() < (before.max() / before.min()) ** 0.6


@pytest.mark.parametrize(("dtype", "condition"), [(torch.float32, 1e6), (torch.float64, 1e6), (torch.float64, 1e12)])
@pytest.mark.parametrize("is_diagonal", [False, True])
def test_whitening_there_and_back_is_nothing(dtype, condition, is_diagonal):
    torch.manual_seed(0)
    A, G = positive(7, condition, dtype), positive(5, condition, dtype)
    A = A.diagonal(dim1=1, dim2=2) if is_diagonal else A
    by = Whitening.of(root_of(A), root_of(G))
    matrix = torch.randn(2, 5, 7, dtype=dtype)
    # Solving loses as many digits as the roots' condition numbers have.
    close = torch.finfo(dtype).eps * condition * 10
    white = whiten_gradient(matrix, by)
    assert white.dtype == dtype
    torch.testing.assert_close(restore_gradient(white, by), matrix, rtol=0, atol=close)
    torch.testing.assert_close(whiten_gradient(restore_gradient(matrix, by), by), matrix, rtol=0, atol=close)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_root_in_a_basis_is_that_of_the_product(dtype):
    torch.manual_seed(0)
    basis = torch.linalg.qr(torch.randn(2, 6, 6, dtype=dtype)).Q
    values = torch.logspace(0, -8, 6, dtype=dtype).expand(2, 6)
    root = root_in_basis(basis, values)
    torch.testing.assert_close(root @ root.mT, (basis * values.unsqueeze(1)) @ basis.mT)
    assert torch.equal(root_in_basis(None, values), values.sqrt())


def test_an_inverse_that_rounding_has_spoilt_has_a_root():
    torch.manual_seed(0)
    spoilt = positive(6, 1e9, torch.float32)
    root = root_of(spoilt)
    torch.testing.assert_close(root @ root.mT, spoilt, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["eva", "mkor", "soap"])
def test_estimators_whose_inverse_is_no_product_of_roots_have_no_whitening(name):
    estimator = ESTIMATORS[name](MatrixShape(1, 3, 4), EstimatorOptions())
    assert estimator.whitening() is None
