"""What the suite of hostile peers has in common: everything runs in plaintext and with mutual TLS."""

import pytest
from raw_client import Target


@pytest.fixture(scope="module", params=["plaintext", "mutual TLS"])
def is_secured(request):
    return request.param == "mutual TLS"


@pytest.fixture(scope="module")
def target(is_secured, tmp_path_factory):
    """Return a coordinator to attack; each test opens sessions of its own on it."""
    with Target(tmp_path_factory.mktemp("target"), is_secured=is_secured) as target:
        yield target
