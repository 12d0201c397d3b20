"""`verify` of both commands."""

import datetime as dt
import json

import numpy as np
import pytest
import torch
from broken_disks import flipped
from edgenewton.common.identity import Kind
from flwr.app import Array, ArrayRecord
from typer.testing import CliRunner

from coordinator.cli.commands import app as coordinator_app
from coordinator.flower.checkpoint import save_checkpoint
from coordinator.flower.history import save_history
from coordinator.identity.audit import AuditLog
from coordinator.identity.authority import Authority
from coordinator.session.settings import SessionSettings
from coordinator.telemetry.record import Record
from edge_client.cli import app
from edge_client.inference import Artefact
from edge_client.inference.onnx_engine import seal
from edge_client.inference.store import ModelStore
from edge_client.sync.replica import dump_state
from edge_client.tasks.cache import ENVIRONMENT, cache_path, keep
from edge_client.training.checkpoint import FORMAT, DeviceCheckpoint

WORDS = {
    "state.pt": "a device's state",
    "model.pt": "a model",
    "store/versions/1/manifest.json": "the manifest of a version in a model store",
    "store/serving.json": "a model store's note of the version that serves",
    "round-1.safetensors": "the weights of a round of a Flower run",
    "history.json": "the history of a Flower run",
    "data.safetensors": "data of a task, kept on this machine",
    "ca/ledger.json": "an authority's ledger",
    "ca/ca.pem": "a certificate",
    "ca/ca.key": "a private key",
    "ca/revoked.pem": "a revocation list",
    "audit.jsonl": "an audit log",
    "record.sqlite": "a coordinator's record",
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Return a folder with one file of each kind."""
    folder = tmp_path_factory.mktemp("files")
    model = {"w": torch.randn(20, 10)}
    DeviceCheckpoint("s", model, {"sync": {"step": 3}}).save(folder / "state.pt")
    artefact = Artefact("digits", ("a",), (1,), 1, model)
    artefact.save(folder / "model.pt")
    with ModelStore(folder / "store") as store:
        store.promote(artefact)
    save_checkpoint(ArrayRecord({"w": Array(np.zeros((20, 10)))}), folder, 1, 1, "digits")
    save_history([{"round": 1}], {}, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(ENVIRONMENT, str(folder))
        keep("data", model)
        assert cache_path("data").parent == folder
    Authority.create(folder / "ca").issue(Kind.DEVICE, "a", dt.timedelta(days=1))
    audit = AuditLog(folder / "audit.jsonl")
    audit.joined("s", "a", None, "")
    audit.close()
    record = Record(folder / "record.sqlite")
    record.begin_session("s", SessionSettings())
    record.close()
    return folder


def verify(command, *arguments):
    result = CliRunner().invoke(command, ["verify", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.output
    return result.exit_code, result.output


@pytest.mark.parametrize("command", [app, coordinator_app], ids=["edge-client", "edge-coordinator"])
@pytest.mark.parametrize("name", WORDS)
def test_every_file_that_is_written_is_known_whole_and_damaged(files, tmp_path, command, name):
    path = files / name
    assert verify(command, path) == (0, f"{path}: {WORDS[name]}, whole\n")
    damaged = tmp_path / path.name
    whole = path.read_bytes()
    place = whole.index(b'"s"') if name == "record.sqlite" else len(whole) // 2
    damaged.write_bytes(flipped(whole, 8 * place))
    code, output = verify(command, damaged)
    assert code == 1
    assert f"{damaged}: " in output
    assert "damaged" in output
    assert path.read_bytes() == whole


def test_json_is_for_programs(files, tmp_path):
    (tmp_path / "empty").touch()
    names = ["state.pt", "record.sqlite"]
    code, output = verify(app, "--json", *(files / name for name in names), tmp_path / "empty", tmp_path / "nowhere")
    assert code == 1
    assert [json.loads(line) for line in output.splitlines()] == [
        {"path": str(files / "state.pt"), "verdict": "whole", "what": "a device's state", "detail": ""},
        {"path": str(files / "record.sqlite"), "verdict": "whole", "what": "a coordinator's record", "detail": ""},
        {"path": str(tmp_path / "empty"), "verdict": "damaged", "what": "", "detail": "it is empty"},
        {
            "path": str(tmp_path / "nowhere"),
            "verdict": "unreadable",
            "what": "",
            "detail": "No such file or directory",
        },
    ]


def test_what_earlier_releases_and_others_wrote_is_told_apart(files, tmp_path):
    model = torch.load(files / "model.pt", weights_only=True)
    torch.save(model, tmp_path / "old.pt")
    torch.save(model | {"step": 9}, tmp_path / "bad.pt")
    (tmp_path / "state.pt").write_bytes(dump_state({"format": FORMAT, "session": "s", "model": {}, "optimizer": {}}))
    (tmp_path / "letter.txt").write_text("Dear Sir or Madam")
    (tmp_path / "model.onnx").write_bytes(seal(b"a graph"))
    (tmp_path / "bad.onnx").write_bytes(flipped(seal(b"a graph"), 3))
    (tmp_path / "cut.json").write_text('{"a": ')
    (tmp_path / "cut.safetensors").write_bytes((files / "round-1.safetensors").read_bytes()[:100])
    for name, code, words in [
        ("old.pt", 0, "a model, whole"),
        ("bad.pt", 1, "a model is damaged: its content does not have the digest"),
        ("state.pt", 3, "a device's state without a digest: whether it is whole is not known"),
        ("letter.txt", 3, "it is without a digest: whether it is whole is not known: an earlier release wrote it, or"),
        ("model.onnx", 0, "a model in ONNX, whole"),
        ("bad.onnx", 1, "a model in ONNX is damaged: "),
        ("cut.json", 1, "it is damaged: it is no JSON"),
        ("cut.safetensors", 1, "it is damaged: its seal is damaged"),
        (".", 1, "it cannot be read: it is a folder; name a file in it"),
    ]:
        found, output = verify(app, tmp_path / name)
        assert (found, words in output) == (code, True), output
