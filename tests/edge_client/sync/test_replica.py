"""States that come from other devices are data, whatever they hold."""

import io
import pickle
from pathlib import Path

import pytest
import torch

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
