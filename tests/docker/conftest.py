import subprocess

import pytest
from container_fleet import DOCKER, IMAGE, SETTINGS, Fleet

BUILD_DEADLINE_S = 900


@pytest.fixture(scope="session")
def image():
    """The image, built anew where anything has changed."""
    built = subprocess.run([DOCKER / "build"], capture_output=True, text=True, timeout=BUILD_DEADLINE_S, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    print(built.stdout)
    return IMAGE


@pytest.fixture(scope="session")
def fleet(image):
    with Fleet("edgenewton-test", "state") as fleet:
        yield fleet


@pytest.fixture(scope="session")
def faultless(fleet, tmp_path_factory):
    """The last round of a training without faults, and the folder of its checkpoint."""
    folder = tmp_path_factory.mktemp("faultless")
    return fleet.train(folder, SETTINGS), folder
