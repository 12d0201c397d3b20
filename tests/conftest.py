import pytest
import torch
from hypothesis import settings

# The speed of a test says nothing on a busy machine.
settings.register_profile("edgenewton", deadline=None)
settings.load_profile("edgenewton")


@pytest.fixture(autouse=True)
def _reproducible_torch():
    torch.manual_seed(0)
    torch.set_num_threads(1)
