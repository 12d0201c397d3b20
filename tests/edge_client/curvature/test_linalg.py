import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edge_client.curvature import CurvatureError
from edge_client.curvature.linalg import damped_inverse, eigen, pack_symmetric, packed_size, unpack_symmetric


@given(size=st.integers(1, 12), blocks=st.integers(1, 3))
def test_packing_symmetric_matrices_loses_nothing(size, blocks):
    matrix = torch.randn(blocks, size, size)
    matrix = matrix + matrix.mT
    packed = pack_symmetric(matrix)
    assert packed.shape == (blocks, packed_size(size))
    assert torch.equal(unpack_symmetric(packed, size), matrix)


@given(size=st.integers(1, 8), rank=st.integers(0, 8), scale=st.sampled_from([1e-12, 1.0, 1e8]))
def test_damped_inverse_is_the_inverse(size, rank, scale):
    rows = torch.randn(2, rank, size, dtype=torch.float64)
    matrix, damping = scale * rows.mT @ rows, scale * torch.tensor([0.1, 2.0], dtype=torch.float64)
    damped = matrix + damping[:, None, None] * torch.eye(size, dtype=torch.float64)
    torch.testing.assert_close(damped_inverse(matrix, damping), torch.linalg.inv(damped))


def test_what_cholesky_refuses_climbs_the_ladder():
    # Rounding has made the smallest eigenvalue negative: Cholesky fails in float32 and in float64.
    matrix = torch.diag(torch.tensor([1.0, 1e-3, -1e-7])).unsqueeze(0)
    with pytest.raises(RuntimeError):
        torch.linalg.cholesky(matrix)
    inverse = damped_inverse(matrix, torch.zeros(1))
    assert inverse.isfinite().all()
    torch.testing.assert_close(inverse[0, :2, :2], torch.diag(torch.tensor([1.0, 1e3])), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("function", [eigen, lambda matrix: damped_inverse(matrix, torch.ones(len(matrix)))])
def test_what_is_not_finite_is_refused(function):
    for bad in (float("nan"), float("inf")):
        with pytest.raises(CurvatureError, match="not finite"):
            function(torch.tensor([[[1.0, bad], [0.0, 1.0]]]))


def test_an_infinite_damping_is_refused():
    with pytest.raises(CurvatureError, match="damping is not finite"):
        damped_inverse(torch.eye(2).unsqueeze(0), torch.full((1,), float("inf")))


def test_an_inverse_leaves_its_matrix_as_it_was():
    matrix = torch.eye(6).expand(2, 6, 6)[:, ::2, ::2]  # neither dense nor a copy
    inverse = damped_inverse(matrix, torch.ones(2))
    assert torch.equal(matrix, torch.eye(3).expand(2, 3, 3))
    torch.testing.assert_close(inverse, torch.eye(3).expand(2, 3, 3) / 2)
    assert inverse.is_contiguous()


def test_a_matrix_of_zeros_without_damping_has_no_inverse():
    with pytest.raises(CurvatureError, match="2 x 2 matrix cannot be inverted"):
        damped_inverse(torch.zeros(1, 2, 2), torch.zeros(1))
