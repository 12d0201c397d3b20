"""Flower's deployment engine with real processes: TLS, known nodes, a database; devices that come, go and crash."""

import contextlib
import json
import threading

import grpc
import pytest
from deployment import fleet, until
from safetensors.numpy import load_file
from short_folder import short_folder

from coordinator.telemetry.watch import follow


@pytest.fixture(scope="module")
def place():
    with short_folder() as folder, fleet(folder) as place:
        yield place


class Watcher:
    """What happens on a coordinator, in the background."""

    def __init__(self, address: str) -> None:
        self.events = []
        threading.Thread(target=self._follow, args=(address,), daemon=True).start()

    def _follow(self, address: str) -> None:
        with contextlib.suppress(grpc.RpcError):  # the coordinator's end
            for event in follow(address):
                self.events.append(event)

    def joins(self, device: str) -> int:
        return sum(event.HasField("joined") and event.joined.device == device for event in self.events)

    def steps(self) -> list[int]:
        return [event.step.step for event in self.events if event.HasField("step")]

    def reason(self) -> str:
        """Why the session is in its present phase."""
        return next((e.phase.reason for e in reversed(self.events) if e.HasField("phase")), "")

    def devices(self) -> int:
        """Devices behind the latest step."""
        return next((e.step.commit.devices for e in reversed(self.events) if e.HasField("step")), 0)


pytestmark = [pytest.mark.flower, pytest.mark.timeout(400)]


def test_devices_come_go_and_crash_in_a_round_and_a_stopped_run_releases_them(place):
    flower, (first, second, third) = place
    stranger = flower.spawn_node()  # without a key that the SuperLink knows
    watcher = Watcher(flower.coordinator)
    run = flower.submit({"devices": 2, "quorum": 1, "rounds": 1, "steps": 1_000_000, "lease-s": 2.0})
    until(lambda: watcher.devices() == 2, "the training of two devices")
    assert stranger.wait(30) != 0

    third.start()
    until(lambda: watcher.joins("device-2") == 1 and watcher.devices() == 3, "the third device's coming")

    first.daemon.process.kill()
    first.daemon.process.communicate()
    crashed_at = watcher.steps()[-1]
    first.daemon.start()
    until(lambda: watcher.joins("device-0") == 2 and watcher.devices() == 3, "the first device's return")
    assert watcher.steps()[-1] > crashed_at

    third.stop_node()
    until(lambda: watcher.devices() == 2, "the third device's going")

    flower.flwr("stop", run, "private")
    until(lambda: not any(d.status().training.is_training for d in (first, second)), "the devices' release")
    until(lambda: "run is over" in watcher.reason(), "the session's end")
    assert all(d.status().training.last.startswith("ended early: ") for d in (first, second))
    assert "finished:stopped" in flower.flwr("list", "private", "--format=json")


@contextlib.contextmanager
def insisting(daemon):
    """Let a daemon insist on masks for the length of a `with` block."""

    def start(environment):
        daemon.process.kill()
        daemon.process.communicate()
        daemon.environment = environment
        daemon.start()

    before = daemon.environment
    start(before | {"EDGENEWTON_REQUIRE": "secure-aggregation"})
    try:
        yield
    finally:
        start(before)


def test_a_plain_run_goes_on_without_a_device_that_insists_on_masks_and_a_masked_one_with_it(place, tmp_path):
    flower, (first, *_) = place
    settings = {"devices": 2, "steps": 6, "rounds": 1, "output": str(tmp_path)}
    with insisting(first.daemon):
        log = flower.train({**settings, "join-deadline-s": 45, "rejoin-deadline-s": 2, "quorum": 1})
        assert "device 'device-0' insists on secure-aggregation" in log, log
        (entry,) = json.loads((tmp_path / "history.json").read_text())["rounds"]
        assert (entry["devices"], len(entry["failures"])) == (1, 1), log

        log = flower.train({**settings, "secure-aggregation": True})
    (entry,) = json.loads((tmp_path / "history.json").read_text())["rounds"]
    assert (entry["devices"], entry.get("failures")) == (2, None), log
    assert "2 devices train 6 steps, and mask what they send" in log
    assert 0 < entry["evaluate"]["accuracy"] <= 1  # the other one's alone


def test_a_run_trains_and_after_a_crash_of_the_superlink_another_goes_on_from_its_checkpoint_with_a_part(
    place, tmp_path
):
    flower, (first, second, third) = place
    third.daemon.process.kill()
    settings = {"devices": 2, "steps": 8, "rounds": 2, "output": str(tmp_path)}
    log = flower.train(settings)
    history = json.loads((tmp_path / "history.json").read_text())["rounds"]
    assert [(e["round"], e["step"], e["devices"]) for e in history] == [(1, 4, 2), (2, 8, 2)], log
    assert all(0 < entry["evaluate"]["accuracy"] <= 1 for entry in history)
    assert [device.status().model.step for device in (first, second)] == [8, 8]

    def listed():
        runs = json.loads(flower.flwr("list", "private", "--format=json"))["runs"]
        return [(run["run-id"], run["status"]) for run in runs]

    before = listed()
    assert "finished:completed" in dict(before).values()
    flower.crash_superlink()
    assert listed() == before

    # Without a learning rate the weights stay those of the checkpoint.
    checkpoint = tmp_path / "round-2.safetensors"
    part = {"fraction-train": 0.5, "fraction-evaluate": 0.5, "resume": str(checkpoint), "lr": 0.0}
    log = flower.train({**settings, "steps": 12, "rounds": 3, **part})
    assert "goes on from" in log
    history = json.loads((tmp_path / "history.json").read_text())["rounds"]
    assert [(e["round"], e["step"], e["devices"]) for e in history] == [(1, 4, 2), (2, 8, 2), (3, 12, 1)], log
    resumed, after = load_file(checkpoint), load_file(tmp_path / "round-3.safetensors")
    assert all((resumed[name] == after[name]).all() for name in resumed)
    assert sorted(device.status().model.step for device in (first, second)) == [8, 12]
