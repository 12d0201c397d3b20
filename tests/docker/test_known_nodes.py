"""A fleet with keys and certificates trains, and lets in no SuperNode that it does not know."""

import subprocess

import pytest
from container_fleet import DEADLINE_S, IMAGE, Fleet, docker

pytestmark = [pytest.mark.docker, pytest.mark.timeout(600)]

STRANGER = (
    "node-key /tmp/node && exec flower-supernode --superlink superlink:8000 --root-certificates /tls/ca.pem "
    "--auth-supernode-private-key /tmp/node"
)


def test_it_trains_and_a_stranger_does_not_get_in(image, tmp_path):
    ca = tmp_path / "ca"
    fleet = Fleet("edgenewton-secured", "tls")
    fleet.environment |= {"CA": str(ca), "DEVICES": "2", "OUTPUT": str(tmp_path / "run")}
    with fleet:
        log = fleet.script("train", "steps=3 rounds=1 batch-size=16")
        assert (tmp_path / "run" / "round-1.safetensors").exists(), f"{log}\n{fleet.logs()}"
        place = ["--rm", f"--network={fleet.project}_default", f"--volume={ca}/devices/device-1:/tls:ro", "--user=root"]
        command = ["docker", "run", *place, IMAGE, "sh", "-c", STRANGER]
        stranger = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
        assert stranger.returncode != 0
        assert "Failed to activate SuperNode" in stranger.stdout + stranger.stderr
        # After a restart without a database the SuperLink is told the keys again, and the devices come back.
        docker("restart", fleet.container("superlink"))
        fleet.script("up", "tls")  # nothing to do but to wait until all are well
        log = fleet.script("train", "steps=3 rounds=1 batch-size=16 seed=1")
        assert "2 devices train 3 steps" in log, f"{log}\n{fleet.logs()}"
