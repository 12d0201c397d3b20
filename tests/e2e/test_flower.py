"""`flwr run` for real, on the simulation engine, in a Flower set-up of its own."""

import datetime as dt
import json
import re

import pytest
import torch
from edgenewton.common.identity import Kind
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from benchmarks.demo.rounds import DemoFailedError, read_rounds
from benchmarks.shared.private_flower import RAY_DID_NOT_START, private_flower
from benchmarks.shared.union_batch import train_union
from coordinator.identity.authority import Authority
from coordinator.report.html import render
from coordinator.report.run import read_run
from edge_client import NewtonOptimizer
from edge_client.inference import Artefact
from edge_client.training.settings import TrainSettings

pytestmark = pytest.mark.flower

DEVICES = 4


@pytest.fixture(scope="module")
def flower(tmp_path_factory):
    with private_flower(tmp_path_factory.mktemp("flower")) as flower:
        yield flower


def run(flower, settings, devices=DEVICES) -> tuple[int, str]:
    for _ in range(2):
        process = flower.run(settings, devices)
        output, _ = process.communicate(timeout=170)
        if RAY_DID_NOT_START not in output:
            break
    return process.returncode, re.sub(r"\x1b\[\d+m", "", output)


def test_four_devices_train_through_the_embedded_coordinator(flower, tmp_path):
    settings = {
        "cadence": "every-batch",
        "steps": 13,
        "rounds": 2,
        "curvature": "eva",
        "batch-size": 16,
        "output": tmp_path,
    }
    code, output = run(flower, settings)
    assert code == 0, output
    assert "coordinator listens on 127.0.0.1:" in output
    assert f"checkpoint {tmp_path / 'round-2.safetensors'}" in output
    history = json.loads((tmp_path / "history.json").read_text())
    assert history["config"]["curvature"] == "eva"
    assert [(entry["round"], entry["step"]) for entry in history["rounds"]] == [(1, 6), (2, 13)]
    for entry in history["rounds"]:
        assert 0 < entry["evaluate"]["accuracy"] <= 1

    # Every step of both rounds was kept, for the report and for TensorBoard.
    reported = read_run(tmp_path)
    assert [step.step for step in reported.steps] == list(range(13))
    assert all(step.devices == DEVICES for step in reported.steps)
    assert [checkpoint.step for checkpoint in reported.checkpoints] == ["6", "13"]
    assert reported.received == sum(device.received for device in reported.devices.values()) > 0
    assert "<h2>Rounds</h2>" in render(reported)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == list(range(13))

    # Two rounds, the optimizer's state carried over, are one training on the union batch.
    expected = TrainSettings(steps=13, curvature="eva", batch_size=16)
    model, accuracies = train_union(
        expected, DEVICES, lambda model: NewtonOptimizer(model, **expected.optimizer_options())
    )
    trained = Artefact.from_checkpoint(tmp_path / "round-2.safetensors")
    assert trained.step == 13
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(trained.weights[name], tensor, rtol=0, atol=1e-4)
    assert history["rounds"][-1]["evaluate"]["accuracy"] == pytest.approx(accuracies[-1], abs=0.01)


def test_a_run_under_masks_is_as_good_and_its_coordinator_knows_no_device_s_loss(flower, tmp_path):
    settings = {
        "cadence": "every-batch",
        "devices": 3,
        "steps": 24,
        "rounds": 2,
        "curvature": "eva",
        "batch-size": 16,
        "secure-aggregation": True,
        "evaluate-every": 12,
        "join-deadline-s": 150,  # a busy machine starts three processes slowly
        "output": tmp_path,
    }
    _, output = run(flower, settings, devices=3)
    print(output)  # shown if something fails
    (_, last) = read_rounds(tmp_path / "history.json", 2)
    assert "waiting for 3 devices that mask what they send" in output
    assert "after each round tell in clear how good the model is" in output
    reported = read_run(tmp_path)
    assert [step.devices for step in reported.steps] == [3] * 24
    assert all(step.loss is not None for step in reported.steps)  # of all devices together
    assert [step.step for step in reported.steps if step.accuracy is not None] == [0, 12]  # of all devices, too
    assert {device.loss for device in reported.devices.values()} == {None}
    assert "masked: sums only" in render(reported)

    plain = TrainSettings(steps=24, curvature="eva", batch_size=16)
    _, accuracies = train_union(plain, 3, lambda model: NewtonOptimizer(model, **plain.optimizer_options()))
    assert accuracies[-1] > 0.7
    assert last["evaluate"]["accuracy"] == pytest.approx(accuracies[-1], abs=0.06)


def test_a_wrong_setting_fails_the_run_with_its_name(flower, tmp_path):
    settings = {"curvature": "bfgs", "devices": 1, "steps": 2, "rounds": 1, "output": tmp_path}
    _, output = run(flower, settings, devices=1)
    assert "setting 'curvature' is 'bfgs': known are kfac, eva" in output
    with pytest.raises(DemoFailedError, match="of 1 rounds 0 were trained"):
        read_rounds(tmp_path / "history.json", 1)


def test_a_run_with_identities(tmp_path, monkeypatch):
    authority = Authority.create(tmp_path / "ca")
    day = dt.timedelta(days=1)
    authority.issue(Kind.COORDINATOR, "hub", day, hosts=["127.0.0.1"])
    operator = authority.issue(Kind.DEVICE, "boss", day, labels=["operator"])
    monkeypatch.setenv("EDGENEWTON_TLS", str(authority.issue(Kind.DEVICE, "gateway-7", day)))
    settings = {
        "cadence": "every-batch",
        "devices": 1,
        "steps": 3,
        "rounds": 1,
        "curvature": "eva",
        "output": tmp_path / "run",
    }
    secured = {"server-tls": authority.folder, "tls": operator, "allow": "gateway-7"}
    with private_flower(tmp_path / "flower") as flower:
        _, output = run(flower, settings | secured, devices=1)
    print(output)  # shown if something fails
    read_rounds(tmp_path / "run" / "history.json", 1)
    assert [step.step for step in read_run(tmp_path / "run").steps] == [0, 1, 2]  # the operator could watch
    lines = [json.loads(line) for line in (tmp_path / "run" / "audit.jsonl").read_text().splitlines()]
    assert [(line["event"], line["device"]) for line in lines] == [("joined", "gateway-7"), ("left", "gateway-7")]
