"""The image: what is in it, and what is not."""

import json

import pytest
from container_fleet import docker

pytestmark = [pytest.mark.docker, pytest.mark.timeout(1200)]
MAX_BYTES = 1_400_000_000


def run(image, *command):
    """Run a command in a container that may write to /tmp only, with no rights at all."""
    locked = ("--read-only", "--tmpfs=/tmp", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--network=none")
    return docker("run", "--rm", *locked, image, *command)


def test_it_is_small_runs_as_nobody_in_particular_and_says_how_it_is(image):
    (known,) = json.loads(docker("image", "inspect", image))
    assert known["Size"] < MAX_BYTES
    assert known["Config"]["User"] == "10001:10001"
    assert known["Config"]["Healthcheck"]["Test"] == ["CMD", "healthcheck"]
    assert run(image, "id", "-u").strip() == "10001"


def test_nothing_that_builds_is_in_it(image):
    tools = "pip gcc cc g++ make ld as strip git curl wget protoc"
    assert run(image, "sh", "-c", f"for tool in {tools}; do command -v $tool || true; done") == ""
    left = run(image, "sh", "-c", "ls -d /wheels /build /root/.cache /var/lib/apt/lists 2>/dev/null || true")
    assert left == ""
    program = "import importlib.util as u; print([name for name in ('pip', 'ray', 'pytest') if u.find_spec(name)])"
    assert run(image, "python", "-c", program) == "[]\n"


@pytest.mark.parametrize("command", ["edge-client", "edge-coordinator", "flower-superlink", "flower-supernode"])
def test_each_command_works_on_a_read_only_root(image, command):
    assert "--help" in run(image, command, "--help")


def test_torch_is_the_processors_own(image):
    program = "import torch; print(torch.version.cuda, float((torch.eye(3) @ torch.ones(3)).sum()))"
    assert run(image, "python", "-c", program) == "None 3.0\n"
