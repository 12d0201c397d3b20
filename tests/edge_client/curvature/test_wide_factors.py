"""Factors that are cut into blocks along their diagonal, against dense algebra in float64."""

import pytest
import torch
from cases import CASES, run

from edge_client.curvature import ESTIMATORS, EstimatorOptions
from edge_client.curvature.factor import Factor, multiply_left, multiply_right
from edge_client.curvature.linalg import packed_size
from edge_client.curvature.whitening import restore_gradient, whiten_gradient

DAMPING = 0.05
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
cut_estimators = pytest.mark.parametrize("name", ["kfac", "inputs_and_gradients", "foof"])


def of_run(name, result, **options):
    estimator = ESTIMATORS[name](result.layer.shape, EstimatorOptions(**options))
    estimator.update(estimator.statistics(result.captured.a, result.captured.g), result.gradient)
    return estimator


def without_what_is_between_blocks(matrices, width):
    """Return matrices `[blocks, n, n]` with zeros beyond blocks of a width along the diagonal."""
    number = torch.arange(matrices.shape[-1]) // width
    return matrices * (number[:, None] == number)


def test_wide_factors_have_parts_of_about_the_same_width():
    widths = {size: (Factor(1, size, widest=256).parts, Factor(1, size, widest=256).width) for size in (383, 385, 4608)}
    assert widths == {383: (1, 383), 385: (2, 193), 4608: (18, 256)}
    assert Factor(2, 385, widest=256).packed_shape == (4, packed_size(193))
    assert Factor(2, 385, widest=256, is_diagonal=True).packed_shape == (2, 385)
    assert Factor(1, 5, widest=1).parts == 5


@every_case
@cut_estimators
@pytest.mark.parametrize("widest", [1, 2, 3])
def test_each_block_is_inverted_on_its_own(name, case, widest):
    result = run(case)
    whole, cut = of_run(name, result), of_run(name, result, widest_factor=widest)
    assert {key: tuple(value.shape) for key, value in cut.statistics(result.captured.a, result.captured.g).items()} == (
        cut.statistic_shapes
    )
    for factor in ("A", "G"):
        if hasattr(cut, factor) and not getattr(cut, factor).is_diagonal:
            of_whole, of_cut = getattr(whole, factor), getattr(cut, factor)
            expected = without_what_is_between_blocks(of_whole.value, of_cut.width)
            torch.testing.assert_close(of_cut.joined(of_cut.value), expected)
            torch.testing.assert_close(of_cut.diagonal, of_whole.diagonal)
            of_whole.value = expected
    assert cut.trace == pytest.approx(whole.trace)
    for estimator in (whole, cut):
        estimator.refresh(DAMPING)
    torch.testing.assert_close(cut.precondition(result.gradient), whole.precondition(result.gradient))


@cut_estimators
def test_a_whitened_gradient_can_be_restored(name):
    result = run(CASES["conv2d, groups"])
    estimator = of_run(name, result, widest_factor=3)
    estimator.refresh(DAMPING)
    by = estimator.whitening()
    white = whiten_gradient(result.gradient, by)
    torch.testing.assert_close(restore_gradient(white, by), result.gradient)
    constants = (estimator.precondition(result.gradient) * result.gradient).sum() / white.square().sum()
    other = torch.randn_like(result.gradient)
    of_other = (estimator.precondition(other) * other).sum() / whiten_gradient(other, by).square().sum()
    torch.testing.assert_close(constants, of_other)


@cut_estimators
@pytest.mark.parametrize(("before", "now"), [(100, 2), (2, 100), (3, 2)])
def test_a_state_of_other_blocks_is_taken(name, before, now):
    result = run(CASES["conv2d, groups"])
    saved = of_run(name, result, widest_factor=before)
    saved.refresh(DAMPING)
    loaded = ESTIMATORS[name](result.layer.shape, EstimatorOptions(widest_factor=now))
    loaded.load_state_dict(saved.state_dict())
    # Until it is refreshed, the inverse is the one that was saved.
    torch.testing.assert_close(loaded.precondition(result.gradient), saved.precondition(result.gradient))
    assert loaded.A.packed_shape == ESTIMATORS[name](result.layer.shape, loaded.options).A.packed_shape
    expected = without_what_is_between_blocks(saved.A.joined(saved.A.value), loaded.A.width)
    torch.testing.assert_close(loaded.A.joined(loaded.A.value), expected)
    loaded.refresh(DAMPING)
    loaded.update(loaded.statistics(result.captured.a, result.captured.g), result.gradient)


def test_products_with_parts_are_those_with_the_whole_matrix():
    torch.manual_seed(0)
    factor = Factor(2, 7, widest=3)
    values = torch.randn(2, 7, 7, dtype=torch.float64)
    parts, matrix = factor.cut(values), torch.randn(2, 4, 7, dtype=torch.float64)
    whole = without_what_is_between_blocks(values, factor.width)
    torch.testing.assert_close(multiply_right(matrix, parts), matrix @ whole)
    torch.testing.assert_close(multiply_left(parts, matrix.mT), whole @ matrix.mT)
