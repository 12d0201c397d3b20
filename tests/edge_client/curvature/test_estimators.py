"""Every estimator on every layer type against dense linear algebra, in float64."""

import pytest
import torch
from cases import CASES, dense_rows, run

from edge_client.curvature import ESTIMATORS, EstimatorOptions
from edge_client.curvature.estimators.base import Estimator
from edge_client.curvature.estimators.mkor import rank_one_inverse
from edge_client.curvature.inputs import DenseInputs
from edge_client.curvature.layers import MatrixShape

DAMPING = 0.05
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
every_estimator = pytest.mark.parametrize("name", ESTIMATORS)
SHAPE = MatrixShape(1, 3, 4)


def make(name: str, shape: MatrixShape = SHAPE, **options) -> Estimator:
    return ESTIMATORS[name](shape, EstimatorOptions(**options))


def batch(seed: int, dtype: torch.dtype = torch.float32):
    """Return inputs, gradients and a gradient matrix of SHAPE."""
    generator = torch.Generator().manual_seed(seed)
    a, g, gradient = (
        torch.randn(size, generator=generator, dtype=dtype) for size in [(1, 6, 2, 4), (1, 6, 2, 3), (1, 3, 4)]
    )
    return DenseInputs(a, has_bias=False), g, gradient


def updated(estimator: Estimator, *batches) -> Estimator:
    for a, g, gradient in batches:
        estimator.update(estimator.statistics(a, g), gradient)
    return estimator


def of_run(name: str, result, **options) -> Estimator:
    estimator = make(name, result.layer.shape, **options)
    return updated(estimator, (result.captured.a, result.captured.g, result.gradient))


def dense_inverse_times(curvature, gradient):
    """Return (curvature + DAMPING I)^-1 vec(gradient), block by block; vec stacks columns."""
    columns = gradient.mT.flatten(1)
    damped = curvature + DAMPING * torch.eye(curvature.shape[-1], dtype=torch.float64)
    return torch.linalg.solve(damped, columns).reshape(gradient.mT.shape).mT


def kron(A, G):
    return torch.stack([torch.kron(a, g) for a, g in zip(A, G, strict=True)])


def factors(result):
    """Return A and G of every block, formed sample by sample."""
    rows, g = dense_rows(result.captured), result.captured.g
    A = torch.einsum("kbsi,kbsj->kij", rows, rows) / rows.shape[1]
    G = torch.einsum("kbso,kbsp->kop", g, g) / (g.shape[1] * g.shape[2])
    return A, G


@every_case
def test_kfac_in_the_eigenbasis_is_the_dense_inverse(case):
    result = run(case)
    estimator = of_run("kfac", result, inversion="eigen")
    estimator.refresh(DAMPING)
    expected = dense_inverse_times(kron(*factors(result)), result.gradient)
    torch.testing.assert_close(estimator.precondition(result.gradient), expected)
    assert estimator.trace == pytest.approx(kron(*factors(result)).diagonal(dim1=1, dim2=2).sum().item())


@every_case
def test_kfac_by_cholesky_is_the_dense_inverse_of_its_damped_factors(case):
    result = run(case)
    estimator = of_run("kfac", result)
    estimator.refresh(DAMPING)
    A, G = factors(result)
    means = [F.diagonal(dim1=1, dim2=2).mean(dim=1)[:, None, None] for F in (A, G)]
    pi = (means[0] / means[1]).sqrt()
    unit = [torch.eye(F.shape[-1], dtype=torch.float64) for F in (A, G)]
    damped = kron(A + pi * DAMPING**0.5 * unit[0], G + DAMPING**0.5 / pi * unit[1])
    columns = torch.linalg.solve(damped, result.gradient.mT.flatten(1))
    torch.testing.assert_close(estimator.precondition(result.gradient), columns.reshape(result.gradient.mT.shape).mT)


@every_case
def test_inputs_and_gradients_is_the_dense_inverse(case):
    result = run(case)
    estimator = of_run("inputs_and_gradients", result, inversion="eigen")
    estimator.refresh(DAMPING)
    A, _ = factors(result)
    outer = result.gradient @ result.gradient.mT / A.diagonal(dim1=1, dim2=2).sum(dim=1)[:, None, None]
    torch.testing.assert_close(
        estimator.precondition(result.gradient), dense_inverse_times(kron(A, outer), result.gradient)
    )


@every_case
def test_foof_is_the_dense_inverse(case):
    result = run(case)
    estimator = of_run("foof", result)
    estimator.refresh(DAMPING)
    A, G = factors(result)
    unit = torch.eye(G.shape[-1], dtype=torch.float64).expand_as(G)
    torch.testing.assert_close(
        estimator.precondition(result.gradient), dense_inverse_times(kron(A, unit), result.gradient)
    )


@every_case
def test_eva_is_the_dense_inverse_of_its_rank_one_curvature(case):
    result = run(case)
    result.captured.g.add_(1.0)  # the mean of g is tiny for a fresh layer
    estimator = of_run("eva", result)
    estimator.refresh(DAMPING)
    a, g = dense_rows(result.captured).mean(dim=(1, 2)), result.captured.g.mean(dim=(1, 2))
    outer = kron(a.unsqueeze(2) * a.unsqueeze(1), g.unsqueeze(2) * g.unsqueeze(1))
    torch.testing.assert_close(estimator.precondition(result.gradient), dense_inverse_times(outer, result.gradient))


@every_case
def test_mkor_is_the_dense_inverse_of_its_running_factors_with_the_gradients_norm(case):
    result = run(case)
    if result.layer.shape.one_hot:
        assert not ESTIMATORS["mkor"].supports(result.layer.shape)
        return
    estimator = of_run("mkor", result, factor_decay=0.8)
    a, g = dense_rows(result.captured).mean(dim=(1, 2)), result.captured.g.mean(dim=(1, 2))
    inverses = [
        torch.linalg.inv(0.8 * torch.eye(v.shape[1], dtype=torch.float64) + 0.2 * v.unsqueeze(2) * v.unsqueeze(1))
        for v in (a, g)
    ]
    direction = inverses[1] @ result.gradient @ inverses[0]
    expected = direction * result.gradient.norm() / direction.norm()
    torch.testing.assert_close(estimator.precondition(result.gradient), expected)


@every_case
def test_gradients_is_the_inverse_root_in_the_eigenbasis(case):
    result = run(case)
    estimator = of_run("soap", result)
    estimator.refresh(DAMPING)
    D = result.gradient
    left = torch.linalg.eigh(D @ D.mT)[1]
    size = D.shape[-1]
    right = torch.linalg.eigh(D.mT @ D)[1] if not result.layer.shape.one_hot else torch.eye(size, dtype=D.dtype)
    # The dense form: a root of the damped second moment, in the basis right ⊗ left.
    for block in range(len(D)):
        basis = torch.kron((right[block] if right.dim() == 3 else right).contiguous(), left[block].contiguous())
        rotated = basis.T @ D[block].T.flatten()
        expected = basis @ (rotated / (rotated.square() + DAMPING).sqrt())
        torch.testing.assert_close(estimator.precondition(D)[block].T.flatten(), expected)


def test_rank_one_updates_are_the_inverse_after_100_of_them():
    torch.manual_seed(0)
    factor = torch.eye(7, dtype=torch.float64).expand(2, 7, 7).clone()
    inverse = factor.clone()
    for _ in range(100):
        vector = torch.randn(2, 7, dtype=torch.float64)
        factor = 0.95 * factor + 0.05 * vector.unsqueeze(2) * vector.unsqueeze(1)
        inverse = rank_one_inverse(inverse, vector, 0.95)
    torch.testing.assert_close(inverse, torch.linalg.inv(factor))


def test_an_inverse_that_grows_is_stabilised():
    estimator = make("mkor", factor_decay=0.5)
    zeros = {"a": torch.zeros(1, 4), "g": torch.zeros(1, 3)}
    for _ in range(200):
        estimator.update(zeros, torch.ones(1, 3, 4))
    assert estimator.inverse_A.abs().max() < 102


@every_estimator
def test_statistics_of_a_union_are_the_weighted_mean_of_the_parts(name):
    a, g = torch.randn(1, 10, 3, 4, dtype=torch.float64), torch.randn(1, 10, 3, 3, dtype=torch.float64)
    estimator = make(name)
    whole = estimator.statistics(DenseInputs(a, has_bias=False), g)
    small = estimator.statistics(DenseInputs(a[:, :3], has_bias=False), g[:, :3])
    large = estimator.statistics(DenseInputs(a[:, 3:], has_bias=False), g[:, 3:])
    assert whole.keys() == estimator.statistic_shapes.keys()
    for statistic, shape in estimator.statistic_shapes.items():
        assert tuple(whole[statistic].shape) == shape
        torch.testing.assert_close((3 * small[statistic] + 7 * large[statistic]) / 10, whole[statistic])


@pytest.mark.parametrize("name", ["kfac", "eva", "foof", "inputs_and_gradients", "soap"])
def test_running_mean_begins_with_plain_averages_and_then_forgets(name):
    estimator = make(name, factor_decay=0.5)
    for value in (1, 3, 8):
        statistics = {key: torch.full(shape, float(value)) for key, shape in estimator.statistic_shapes.items()}
        estimator.update(statistics, torch.full((1, 3, 4), float(value) ** 0.5))
    running = {"eva": lambda: estimator.a, "soap": lambda: estimator.left.value / 4}
    value = running.get(name, lambda: estimator.A.value)()
    # 1, then (1 + 3) / 2, then 0.5 * 2 + 0.5 * 8
    torch.testing.assert_close(value, torch.full_like(value, 5.0))


@every_estimator
@pytest.mark.parametrize("inversion", ["cholesky", "eigen"])
def test_state_goes_on_bit_identically(name, inversion, tmp_path):
    one, other = (make(name, inversion=inversion) for _ in range(2))
    updated(one, batch(0)).refresh(0.1)
    torch.save(one.state_dict(), tmp_path / "state.pt")
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    gradient = batch(2)[2]
    assert torch.equal(one.precondition(gradient), other.precondition(gradient))
    for estimator in (one, other):
        updated(estimator, batch(1)).refresh(0.1)
    assert torch.equal(one.precondition(gradient), other.precondition(gradient))


@every_estimator
@pytest.mark.parametrize("inversion", ["cholesky", "eigen"])
@pytest.mark.parametrize("scale", [0.0, 1e-20, 1.0, 1e15])
def test_degenerate_statistics_give_finite_directions(name, inversion, scale):
    a, g = (
        DenseInputs(torch.ones(1, 4, 1, 4) * scale, has_bias=False),
        torch.ones(1, 4, 1, 3) * scale,
    )  # rank one at most
    estimator = updated(make(name, inversion=inversion), (a, g, torch.ones(1, 3, 4) * scale))
    estimator.refresh(max(1e-3 * estimator.trace, 1e-20))
    assert estimator.precondition(torch.ones(1, 3, 4) * scale).isfinite().all()
