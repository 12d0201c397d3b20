"""States that come from other devices are data, whatever they hold."""

import io
import pickle
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from edge_client import EveryBatch, LocalCurvature, NewtonOptimizer
from edge_client.exchange import InProcessExchange
from edge_client.sync import LocalSteps
from edge_client.sync.replica import dump_state, load_state


class Evil:
    """Touches a file when it is unpickled."""

    def __init__(self, path):
        self._path = path

    def __reduce__(self):
        return Path.touch, (self._path,)


def as_torch_saves(content):
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def load_without_care(data):
    torch.load(io.BytesIO(data), weights_only=False)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize(
    ("write", "careless"), [(as_torch_saves, load_without_care), (pickle.dumps, pickle.loads)], ids=["torch", "pickle"]
)
def test_a_state_with_code_is_refused_and_the_code_does_not_run(write, careless, tmp_path):
    data = write({"model": Evil(tmp_path / "ran")})
    with pytest.raises(ValueError, match="the state cannot be read"):
        load_state(data)
    assert not (tmp_path / "ran").exists()
    careless(data)
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("data", [b"", b"garbage", dump_state({"weight": torch.ones(100)})[:-200]])
def test_damaged_bytes_are_refused(data):
    with pytest.raises(ValueError, match="the state cannot be read"):
        load_state(data)


def test_a_state_comes_back_as_it_was():
    state = load_state(dump_state({"model": {"weight": torch.arange(3.0)}, "step": 7}))
    assert state["step"] == 7
    assert state["model"]["weight"].tolist() == [0.0, 1.0, 2.0]


@pytest.mark.parametrize(
    ("plan", "keeps"),
    [(LocalCurvature, True), (partial(LocalSteps, every=2), True), (EveryBatch, False)],
    ids=["own curvature", "own curvature in local steps", "common curvature"],
)
def test_curvature_of_a_devices_own_batches_does_not_leave_with_its_state(plan, keeps):
    """Its factors are covariances of the device's inputs."""
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    optimizer = NewtonOptimizer(model, sync=plan(InProcessExchange()))
    for _ in range(4):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(torch.randn(9, 6)), torch.randint(0, 3, (9,))).backward()
        optimizer.step()
    replica = optimizer._sync.replica
    state = replica.dump()
    assert bool(load_state(state)["optimizer"]["curvature"]) is not keeps
    assert optimizer.state_dict()["curvature"]  # its own file has it
    before = optimizer.state_dict()["curvature"]
    replica.load(state)
    assert optimizer.state_dict()["curvature"].keys() == before.keys()
