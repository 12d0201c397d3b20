"""Training on a fleet, without and with faults: a device is killed, and the coordinator is restarted."""

import pytest
from container_fleet import DEVICES, SETTINGS, docker

from edge_client.inference import Artefact
from edge_client.tasks import Partition
from edge_client.tasks.digits import DigitsTask

pytestmark = [pytest.mark.docker, pytest.mark.timeout(900)]

TARGET = 0.93
TASK = DigitsTask()
VICTIM = "device-2"


def predictions(folder):
    model = TASK.model()
    model.load_state_dict(Artefact.from_checkpoint(folder / "round-1.safetensors").weights)
    return model.eval()(TASK.test_data(Partition()).inputs).argmax(dim=1)


def test_the_fleet_trains_to_the_target(faultless):
    last, _ = faultless
    assert last["step"] == 40
    assert last["evaluate"]["accuracy"] >= TARGET


@pytest.mark.parametrize("device", [1, 3])
def test_a_device_recognises_what_the_fleet_has_learnt(fleet, faultless, device, tmp_path):
    recognised = [fleet.recognise(device, sample) for sample in range(20)]
    truth = [TASK.save_sample(sample, tmp_path / "sample.png") for sample in range(20)]
    assert sum(map(str.__eq__, recognised, truth)) >= 18


def test_a_killed_device_and_a_restarted_coordinator_change_nothing(fleet, faultless, tmp_path):
    victim, coordinator = fleet.container(VICTIM), fleet.container("coordinator")

    def kill_and_start() -> None:
        docker("kill", victim)
        docker("start", victim)

    last = fleet.train(tmp_path, SETTINGS, {8: kill_and_start, 20: lambda: docker("restart", coordinator)})
    assert last["step"] == 40
    assert last["devices"] == DEVICES
    assert "failures" not in last
    assert last["evaluate"]["accuracy"] == pytest.approx(faultless[0]["evaluate"]["accuracy"], abs=0.03)
    # Weights differ: sums are rounded in the order of arrival, and the victim's batches come later.
    agreement = (predictions(tmp_path) == predictions(faultless[1])).float().mean()
    assert agreement >= 0.94
    # The victim serves what it helped to train.
    assert fleet.recognise(2, 3) == fleet.recognise(1, 3) == TASK.save_sample(3, tmp_path / "sample.png")
