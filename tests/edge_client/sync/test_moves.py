"""The moves of a whole model as vectors, and their scales, against the curvature's own diagonal."""

import numpy as np
import pytest
import torch
from edgenewton.v1.codecs import CodecChoice
from edgenewton.v1.framing import Layout, SliceWriter
from torch import nn

from edge_client import NewtonOptimizer
from edge_client.curvature.probe import Probe
from edge_client.curvature.probe_inputs import GaussianInputs
from edge_client.exchange.remote.device_stages import DeviceStages
from edge_client.sync import LocalSteps, Probed, moves
from edge_client.sync.moves import move_vectors


def taken(estimator="kfac", batches=3):
    """Return the plan of a device alone that has taken some steps with the curvature of a probe."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.Tanh(), nn.Linear(7, 3, bias=False))
    inputs = GaussianInputs(torch.zeros(5), torch.arange(1.0, 6.0))
    scope = Probed(Probe(inputs, nn.functional.cross_entropy))
    optimizer = NewtonOptimizer(model, sync=LocalSteps(every=2, scope=scope), curvature=estimator)
    for _ in range(batches):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs(torch.Generator().manual_seed(1), 9)), torch.arange(9) % 3).backward()
        optimizer.step()
    return optimizer._sync


def test_a_vector_has_every_move_once_and_gives_it_back():
    plan = taken()
    (vector,) = plan._moves
    before = {parameter: torch.zeros_like(parameter) for parameter in plan._tensors.names}
    flat = vector.gather(before)
    assert flat.shape == vector.spec().shape == (sum(p.numel() for p in plan._tensors.names),)
    assert [part.name for part in vector.spec().parts] == ["0", "1", "3"]
    for parameter, move in vector.scatter(flat).items():
        assert torch.equal(move.view_as(parameter), parameter)


def test_vectors_are_cut_between_layers(monkeypatch):
    parts = taken()._moves[0].parts
    monkeypatch.setattr(moves, "_MAX_ELEMENTS", 60)
    assert [[part.name for part in vector.parts] for vector in move_vectors(parts)] == [["0", "1"], ["3"]]
    monkeypatch.setattr(moves, "_MAX_ELEMENTS", 10)  # a part alone may have more
    assert [vector.key for vector in move_vectors(parts)] == [("delta", "0"), ("delta", "1"), ("delta", "3")]


def test_scales_are_the_fourth_root_of_the_diagonal_in_units_of_its_mean():
    plan = taken()
    (vector,) = plan._moves
    scales = plan._scales.of(vector.key)
    layers = {state.name: state for state in plan._subject.layers}
    diagonals = []
    for part in vector.parts:
        estimator = layers[part.name].estimator
        fresh = type(estimator)(estimator.shape, estimator.options)
        fresh.update(plan._scope.in_common[part.name], torch.zeros(part.shape))
        product = [torch.kron(G, A).diagonal() for A, G in zip(_dense(fresh.A), _dense(fresh.G), strict=True)]
        diagonals.append(torch.cat(product))
    diagonal = torch.cat(diagonals).double()
    expected = (diagonal / diagonal.mean()).clamp(min=1e-6) ** 0.25
    np.testing.assert_allclose(scales, expected.numpy(), rtol=1e-5)


def _dense(factor):
    return torch.diag_embed(factor.value) if factor.is_diagonal else factor.value


def test_an_estimator_without_a_diagonal_leaves_moves_as_they_are():
    plan = taken("eva")
    assert plan._scales.of(plan._moves[0].key) is None


@pytest.mark.parametrize("codec", ["sparse4", "int4", "powersgd", "fp32"])
def test_what_is_written_and_read_are_the_moves(codec):
    plan = taken()
    (vector,) = plan._moves
    choice = CodecChoice(codec, topk_fraction=1.0, powersgd_rank=7)
    layout = Layout((vector.spec(),), choice.policy(), 1 << 20)
    stages = DeviceStages(choice, plan._scales.stages)
    (piece,) = layout.slices(0)
    move = np.random.default_rng(0).standard_normal(vector.spec().size).astype(np.float32)
    received = piece.decode(SliceWriter(layout, stages.policy).encode(piece, move, 0), 0)
    scales = plan._scales.of(vector.key) if codec != "fp32" else 1
    error = stages.undo(vector.spec(), received, 0) - move
    assert np.linalg.norm(error * scales) < 0.15 * np.linalg.norm(move * scales)


def test_curvature_that_is_not_finite_leaves_moves_as_they_are():
    plan = taken()
    (vector,) = plan._moves
    broken = {name: dict(statistics) for name, statistics in plan._scope.in_common.items()}
    broken["0"]["A"] = torch.full_like(broken["0"]["A"], torch.inf)
    plan._scope._of_round = broken
    assert plan._scales.of(vector.key) is None
