"""A device that sends gradients times -10 to a real coordinator: the others get theirs, and it is named everywhere."""

import json

import grpc
import pytest
from bare_client import Device, elements
from edgenewton.v1 import exchange_pb2_grpc

from coordinator.dashboard.state import describe
from coordinator.identity.audit import AuditLog
from coordinator.identity.gate import AccessGate
from coordinator.serving.server import embedded_coordinator
from coordinator.session.settings import SessionSettings

STEPS = 4


@pytest.mark.parametrize("aggregator", ["mean", "history"])
def test_one_of_four_devices_sends_reversed_gradients(tmp_path, aggregator):
    path = tmp_path / "audit.jsonl"
    with (
        embedded_coordinator(gate=AccessGate(None, AuditLog(path))) as coordinator,
        grpc.insecure_channel(coordinator.address) as channel,
    ):
        coordinator.create_session("s", SessionSettings(devices=4, aggregator=aggregator))
        stub = exchange_pb2_grpc.GradientExchangeStub(channel)
        devices = [Device(stub, name) for name in "abcd"]
        means = []
        for step in range(STEPS):
            for number, device in enumerate(devices):
                device.send_gradient(step, -10.0 if number == 3 else 1.0 + 0.1 * number, samples=32)
            frames = [next(device.stream) for device in devices]
            assert {frame.commit.devices for frame in frames} == {4}
            assert len({elements(frame).tobytes() for frame in frames}) == 1
            means.append(float(elements(frames[0])[0]))
        state = describe(coordinator.directory.find("s"), now=0.0)
    named = {incident["device"]: incident["text"] for incident in state["incidents"] if incident["kind"] == "unlike"}
    audited = [line for line in map(json.loads, path.read_text().splitlines()) if line["event"] == "unlike"]
    if aggregator == "mean":
        assert max(means) < 0
        assert not named
        assert not audited
        return
    assert min(means) > 0.7
    assert named.keys() == {"d"}
    assert "gradients" in named["d"]
    assert [(line["device"], line["times"]) for line in audited] == [("d", 1), ("d", 2), ("d", 4)]
    (shown,) = [device for device in state["devices"] if device["device"] == "d"]
    assert shown["unlike"] == 4
    assert "did not count" in shown["last_error"] or "clipped" in shown["last_error"]
