"""A daemon serves what its training publishes, in the middle of the training, while requests come."""

import threading

import httpx
import pytest
import torch
from daemons import Daemon

from coordinator.serving.server import embedded_coordinator
from coordinator.session.settings import SessionSettings
from edge_client.inference import Artefact
from edge_client.training.run import averaged_weights
from edge_client.training.settings import check_settings
from edge_client.training.trainer import Trainer
from edge_client.training.work import DataRequest, TrainRequest

pytestmark = pytest.mark.processes

STEPS, EVERY = 30, 5
SETTINGS = {"cadence": "every-batch", "curvature": "eva", "batch-size": 16}
CONFIG = f"[training]\npublish_every_steps = {EVERY}\nnice = 0\n"
SAMPLE = {"inputs": [{"name": "raw", "datatype": "UINT8", "shape": [1, 8, 8], "data": [0] * 64}]}


class Asker(threading.Thread):
    """Asks all the time, and keeps the versions that answered."""

    def __init__(self, address: str) -> None:
        super().__init__()
        self.versions: list[int] = []
        self._address = address
        self._stop_asking = threading.Event()

    def run(self) -> None:
        with httpx.Client(base_url=f"http://{self._address}", timeout=60) as http:
            while not self._stop_asking.wait(0.02):
                answer = http.post("/v2/models/model/infer", json=SAMPLE)
                assert answer.status_code == 200, answer.text
                self.versions.append(int(answer.json()["model_version"]))

    def stop(self) -> None:
        self._stop_asking.set()
        self.join()


def test_each_published_model_is_the_average_of_its_steps_and_no_request_is_lost(short_tmp_path):
    environment = {"EDGENEWTON_MODEL__KEEP": "20", "EDGENEWTON_MODEL__GATE_MARGIN": "1.0"}
    with (
        embedded_coordinator() as coordinator,
        Daemon(short_tmp_path, CONFIG, **environment) as daemon,
        daemon.client() as client,
    ):
        coordinator.create_session("round-1", SessionSettings(devices=1))
        weights = client.initial_weights(SETTINGS)
        request = TrainRequest(DataRequest(SETTINGS), coordinator.address, "round-1", "", 0, STEPS, weights)
        asker = Asker(daemon.rest)
        asker.start()
        try:
            report, _ = client.train(request)
        finally:
            asker.stop()
        assert daemon.stop() == 0
    assert report.steps == STEPS
    versions = short_tmp_path / "state" / "models" / "versions"
    served = {int(path.name): Artefact.load(path / "model.pt") for path in versions.iterdir() if path.name.isdigit()}
    steps = [artefact.step for _, artefact in sorted(served.items())]
    assert steps == sorted(steps)
    assert (steps[0], steps[-1]) == (1, STEPS)  # the initial one is that of step 1
    assert set(steps[1:-1]) & set(range(EVERY, STEPS, EVERY)), "nothing served before the end"
    assert asker.versions == sorted(asker.versions)
    assert set(asker.versions) <= set(served)
    alone = Trainer(check_settings(SETTINGS))
    for version in sorted(served)[1:]:
        alone.train(served[version].step - alone.optimizer.current_step)
        expected = averaged_weights(alone)
        assert all(torch.equal(served[version].weights[name], tensor) for name, tensor in expected.items())
