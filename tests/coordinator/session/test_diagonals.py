"""What the coordinator checks of curvature stands where the devices' estimators put it."""

import pytest
import torch
from edgenewton.v1.tensor_spec import TensorSpec

from coordinator.session.diagonals import diagonal_positions
from edge_client.curvature.factor import Factor


@pytest.mark.parametrize(
    ("factor", "ones"),
    [
        (Factor(2, 5), torch.eye(5).repeat(2, 1, 1)),
        (Factor(1, 10, widest=5), torch.eye(5).repeat(2, 1, 1)),
        (Factor(3, 4, is_diagonal=True), torch.ones(3, 4)),
    ],
    ids=["whole", "in parts", "diagonal"],
)
def test_the_diagonals_of_a_factor_are_found_in_what_is_exchanged(factor, ones):
    packed = factor.pack(ones)
    assert tuple(packed.shape) == factor.packed_shape
    spec = TensorSpec("A", factor.packed_shape, kind="curvature", structure=factor.structure)
    assert packed.flatten()[diagonal_positions(spec)].tolist() == [1.0] * int(packed.sum())
