"""Inputs of convolutions: what is formed only where it is needed, and the sample of positions that stands for all."""

import pytest
import torch
from cases import CASES, run
from torch import nn

from edge_client.curvature.layers import supported_layer
from edge_client.curvature.patches import thinning

every_convolution = pytest.mark.parametrize("name", [name for name in CASES if name.startswith("conv")])


def inputs_of(module, *shape):
    torch.manual_seed(0)
    return supported_layer("layer", module.double()).inputs(torch.randn(*shape, dtype=torch.float64))


@every_convolution
def test_products_with_directions_are_those_of_the_patches(name):
    result = run(CASES[name])
    size = result.layer.weight[0].numel()
    directions = torch.randn(size, 3, dtype=torch.float64)
    torch.testing.assert_close(result.captured.a.along(directions), result.captured.a.formed.along(directions))


@pytest.mark.parametrize(
    ("module", "shape", "combinations"),
    [
        (nn.Conv2d(2, 3, 3, padding=1), (4, 2, 16, 16), 16),
        (nn.Conv2d(4, 4, 3, padding=1, groups=2, bias=False), (4, 4, 16, 16), 16),
        (nn.Conv2d(1, 2, (3, 1)), (8, 1, 12, 9), 4),  # 10 x 9 positions, which 2 does not divide
        (nn.Conv1d(3, 2, 5), (4, 3, 60), 4),
    ],
)
def test_a_sample_of_the_positions_is_unbiased(module, shape, combinations):
    inputs = inputs_of(module, *shape)
    moments = [inputs.sampled(seed).second_moment("expand") for seed in range(20 * combinations)]
    different = {moment.double().numpy().tobytes(): moment for moment in moments}
    assert len(different) == combinations
    torch.testing.assert_close(torch.stack(list(different.values())).mean(dim=0), inputs.second_moment("expand"))


def test_a_seed_always_draws_the_same_positions():
    inputs = inputs_of(nn.Conv2d(2, 3, 3), 4, 2, 18, 18)
    first, again = (inputs.sampled(7).second_moment("expand") for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, inputs.sampled(8).second_moment("expand"))


def test_what_has_few_positions_or_a_mean_to_form_is_not_sampled():
    few = inputs_of(nn.Conv2d(2, 3, 3), 2, 2, 6, 6)
    assert torch.equal(few.sampled(1).second_moment("expand"), few.second_moment("expand"))
    many = inputs_of(nn.Conv2d(2, 3, 3), 4, 2, 18, 18)
    assert torch.equal(many.sampled(1).second_moment("reduce"), many.second_moment("reduce"))


def test_images_that_were_folded_into_the_batch_share_the_weight():
    inputs = inputs_of(nn.Conv2d(2, 3, 3), 6, 2, 5, 5).regrouped(3)
    rows = inputs.formed.rows
    assert rows.shape == (1, 3, 2 * 9, 18)
    torch.testing.assert_close(
        inputs.second_moment("expand")[0, :-1, :-1], rows[0].flatten(0, 1).T @ rows[0].flatten(0, 1) / 3
    )


@pytest.mark.parametrize(
    ("rows", "positions", "features", "expected"),
    [
        (128 * 1024, [32, 32], 256, [8, 8]),  # no fewer than four in each dimension
        (128 * 64, [8, 8], 145, [2, 2]),
        (128 * 256, [16, 16], 4608, [2, 1]),  # two rows for each feature are left
        (32 * 49, [7, 7], 9, [1, 1]),
        (100, [1], 1000, [1]),
    ],
)
def test_how_many_positions_are_left_out(rows, positions, features, expected):
    assert thinning(rows, positions, features) == expected
