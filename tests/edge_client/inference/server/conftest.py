import pytest
from server_process import serving


@pytest.fixture(scope="package")
def server(tmp_path_factory):
    with serving("digits", tmp_path_factory.mktemp("server")) as server:
        yield server
