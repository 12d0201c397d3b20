import pytest
import torch
from hypothesis import settings
from short_folder import short_folder

# The speed of a test says nothing on a busy machine.
settings.register_profile("edgenewton", deadline=None, max_examples=40)
settings.register_profile("thorough", deadline=None, max_examples=1000)
settings.load_profile("edgenewton")


@pytest.fixture(autouse=True)
def _reproducible_torch():
    torch.manual_seed(0)
    torch.set_num_threads(1)


@pytest.fixture
def short_tmp_path():
    """Return a folder for sockets; `tmp_path` may be too long for them."""
    with short_folder() as folder:
        yield folder
