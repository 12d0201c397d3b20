"""Flower's ClientApp in its own process, called as Flower calls it; tests/e2e has it beside a daemon."""

import datetime as dt
import json
import subprocess
import sys

import pytest
import torch
from client_app_calls import SETTINGS, ask, context, rounds
from edgenewton.common.identity import Kind

from coordinator.identity.audit import AuditLog
from coordinator.identity.authority import Authority
from coordinator.identity.gate import AccessGate
from coordinator.identity.server_tls import ServerTls, ServerTlsFiles
from coordinator.serving.server import embedded_coordinator
from coordinator.session.settings import SessionSettings
from edge_client.sync.replica import tensors_digest
from edge_client.training.run import averaged_weights
from edge_client.training.settings import TrainSettings
from edge_client.training.trainer import Trainer


def test_without_a_daemon_it_trains_itself_and_goes_on_in_the_next_message():
    alone = Trainer(TrainSettings(curvature="eva", batch_size=16))
    alone.train(5)
    weights, digest, evaluation = rounds(context())
    expected = averaged_weights(alone)
    assert digest == tensors_digest(expected).hex()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in expected.items())
    result = alone.evaluate()
    assert evaluation["accuracy"] == pytest.approx(result.correct / result.samples)


def test_of_a_round_the_coordinator_is_told_how_long_the_whole_run_is(monkeypatch):
    monkeypatch.setitem(SETTINGS, "steps", 90)
    given = context()
    weights = ask("query", given).content.array_records["arrays"].to_torch_state_dict()
    with embedded_coordinator() as coordinator:
        coordinator.create_session("round-2", SessionSettings(devices=1, first_step=30))
        place = {"coordinator": coordinator.address, "session": "round-2", "first-step": 30, "steps": 2}
        assert not ask("train", given, weights, **place).has_error()
        statistics = coordinator.directory.find("round-2").chronicle.statistics
        assert (statistics.done, statistics.run_steps) == (32, 90)


@pytest.mark.parametrize("by", ["node config", "environment"])
def test_its_certificate_says_who_it_is(tmp_path, monkeypatch, by):
    authority = Authority.create(tmp_path / "ca")
    authority.issue(Kind.COORDINATOR, "hub", dt.timedelta(days=1), hosts=["127.0.0.1"])
    folder = str(authority.issue(Kind.DEVICE, "gateway-7", dt.timedelta(days=1)))
    audit = tmp_path / "audit.jsonl"
    gate = AccessGate(ServerTls(ServerTlsFiles.parse(str(tmp_path / "ca"))), AuditLog(audit))
    if by == "environment":
        monkeypatch.setenv("EDGENEWTON_TLS", folder)
        rounds(context(), gate)
    else:
        rounds(context(tls=folder), gate)
    joined = [line for line in map(json.loads, audit.read_text().splitlines()) if line["event"] == "joined"]
    assert [(line["session"], line["device"]) for line in joined] == [
        ("round-1", "gateway-7"),
        ("round-2", "gateway-7"),
    ]


@pytest.mark.parametrize(
    ("required", "text"),
    [
        ("secure-aggregation", "device 'device-0' insists on secure-aggregation, and session 'round-1' has no secure"),
        ("masks", "'masks' is nothing that can be required"),
    ],
)
def test_what_its_node_requires_a_session_must_give(required, text):
    given = context(require=required)
    weights = ask("query", given).content.array_records["arrays"].to_torch_state_dict()
    with embedded_coordinator() as coordinator:
        coordinator.create_session("round-1", SessionSettings(devices=1))
        place = {"coordinator": coordinator.address, "session": "round-1", "first-step": 0, "steps": 1}
        reply = ask("train", given, weights, **place)
        assert text in reply.error.reason
        assert not coordinator.directory.find("round-1").session.members


def test_a_node_that_requires_masks_does_not_tell_how_good_a_model_is_on_its_samples():
    given = context(require="secure-aggregation>=3")
    weights = ask("query", given).content.array_records["arrays"].to_torch_state_dict()
    reply = ask("evaluate", given, weights)
    assert "insists on secure-aggregation>=3, and its accuracy on its own samples would leave" in reply.error.reason


@pytest.mark.parametrize("by", ["node config", "environment"])
def test_a_daemon_that_does_not_answer_is_named(short_tmp_path, monkeypatch, by):
    monkeypatch.setattr("edge_client.daemon.client._CONNECT_DEADLINE_S", 0.2)
    socket = short_tmp_path / "daemon.sock"
    if by == "environment":
        monkeypatch.setenv("EDGENEWTON_SOCKET", str(socket))
        reply = ask("query", context())
    else:
        reply = ask("query", context(**{"daemon-socket": str(socket)}))
    assert f"no daemon answers at {socket}" in reply.error.reason


def test_a_node_without_its_place_is_told_what_to_set():
    given = context()
    del given.node_config["partition-id"]
    reply = ask("evaluate", given, {"x": torch.zeros(1)})
    assert "the node's config lacks 'partition-id'" in reply.error.reason


def test_what_the_node_insists_on_is_given_or_nothing_leaves_it(monkeypatch):
    weights = ask("query", context()).content.array_records["arrays"].to_torch_state_dict()
    with embedded_coordinator() as coordinator:
        coordinator.create_session("s", SessionSettings(devices=1))
        place = {"coordinator": coordinator.address, "session": "s", "first-step": 0, "steps": 1}
        given = context(require="secure-aggregation, epsilon<=4")
        assert (
            "insists on epsilon<=4, and is to train with no privacy budget"
            in ask("train", given, weights, **place).error.reason
        )
        assert "set fraction-evaluate=0" in ask("evaluate", given, weights).error.reason
        assert not coordinator.directory.find("s").session.members
        wrong = ask("train", context(require="epsilon"), weights, **place)
        assert "'epsilon' is nothing that can be required" in wrong.error.reason


def test_beside_a_daemon_it_does_without_pytorch():
    code = "import sys, edge_client.client_app; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
