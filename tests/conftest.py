import pytest
import second_device  # before the first backward, in which autograd looks what devices there are
import torch
from hypothesis import settings
from short_folder import short_folder

from edge_client import device_name, devices

# The speed of a test says nothing on a busy machine.
settings.register_profile("edgenewton", deadline=None, max_examples=40)
settings.register_profile("thorough", deadline=None, max_examples=1000)
settings.load_profile("edgenewton")


@pytest.fixture(autouse=True)
def _reproducible_torch():
    torch.manual_seed(0)
    torch.set_num_threads(1)


@pytest.fixture(params=[second_device.NAME, "cuda", "mps"])
def hardware(request, monkeypatch):
    """Return the name of each kind of device but the CPU that this machine has; one it has in any case."""
    if request.param == second_device.NAME:
        monkeypatch.setattr(device_name, "KINDS", (*device_name.KINDS, second_device.NAME))
    if not devices.count(request.param):
        pytest.skip(f"this machine has no {request.param}")
    return request.param


@pytest.fixture
def short_tmp_path():
    """Return a folder for sockets; `tmp_path` may be too long for them."""
    with short_folder() as folder:
        yield folder
