"""A device's state on disks that fail: damage is noticed, the state before it is used, and training goes on."""

import pytest
import torch
from broken_disks import bits, damages, flipped, full_disk, read_only
from typer.testing import CliRunner

from edge_client.cli import app
from edge_client.daemon import trainer_process
from edge_client.daemon.config import LogConfig
from edge_client.daemon.messages import Start
from edge_client.daemon.trainer_process import JobRunner
from edge_client.inference import Artefact
from edge_client.sync.replica import dump_state
from edge_client.training.checkpoint import FORMAT, DeviceCheckpoint
from edge_client.training.jobs import read_weights
from edge_client.training.own_process import OwnProcess
from edge_client.training.run import Saving, train_in_session
from edge_client.training.settings import TrainSettings
from edge_client.training.work import DataRequest, TrainRequest

SETTINGS = TrainSettings(task="own_data:OwnData", batch_size=8, steps=6)


def state(step: int, session: str = "s") -> DeviceCheckpoint:
    torch.manual_seed(step)
    model = {"w": torch.randn(40, 20), "b": torch.zeros(20)}
    return DeviceCheckpoint(session, model, {"sync": {"step": step}, "momentum": {"w": torch.randn(40, 20)}})


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "device" / "state.pt"
    for step in (3, 5):
        state(step).save(path)
    return path


def test_every_flipped_bit_is_noticed(path):
    data = path.read_bytes()
    unnoticed = []
    for bit in bits(data, count=400, ends=120):
        try:
            DeviceCheckpoint.parse(flipped(data, bit))
        except ValueError:
            continue
        unnoticed.append(bit)
    assert unnoticed == []


def test_the_state_before_a_damaged_one_is_used(path, caplog):
    whole, before = path.read_bytes(), path.with_name("state.pt.previous").read_bytes()
    for name, data in damages(whole).items():
        path.write_bytes(data)
        path.with_name("state.pt.previous").write_bytes(before)
        found = DeviceCheckpoint.load(path, "s")
        assert found.step == 3, name
        assert torch.equal(found.model["w"], state(3).model["w"])
        assert path.with_name("state.pt.damaged").read_bytes() == data
    assert f"{path} is damaged: " in caplog.text
    assert f"{path}.previous is used in place of {path}" in caplog.text


def test_without_a_good_state_a_device_begins_without_one(path, caplog):
    path.write_bytes(b"\0" * 100)
    path.with_name("state.pt.previous").unlink()
    assert DeviceCheckpoint.load(path, "s") is None
    assert f"there is no earlier generation of {path}: it counts as missing" in caplog.text
    assert not path.exists()


def test_a_state_of_an_earlier_release_is_gone_on_from(path, caplog):
    path.write_bytes(dump_state({"format": FORMAT, **vars(state(9))}))
    assert DeviceCheckpoint.load(path, "s").step == 9
    assert caplog.messages == [
        f"{path} carries no digest, as an earlier release wrote it: whether it is whole is not known"
    ]


def test_a_file_that_is_something_else_is_named_and_left_alone(path):
    Artefact("digits", ("a",), (1,), 1, {"w": torch.zeros(1)}).save(path)
    with pytest.raises(ValueError, match=r"state.pt is no state of a device: it is a file of kind 'model'"):
        DeviceCheckpoint.load(path, "s")
    path.write_bytes(dump_state({"format": "something"}))
    with pytest.raises(ValueError, match=r"state.pt is no state of a device: its format is 'something'; name another"):
        DeviceCheckpoint.load(path, "s")
    assert path.exists()


def test_a_state_that_flower_kept_damaged_is_begun_without(caplog):
    class Keeper:
        def load(self):
            return flipped(state(3).dump(), 5_000)

    assert OwnProcess(Keeper(), None)._saved() is None
    assert "the optimizer begins anew: its content does not have the digest" in caplog.text


# ---------------------------------------------------------------- disks that refuse


def test_training_goes_on_without_room_for_its_state_and_the_one_before_stays(path, caplog):
    with full_disk(1_000):
        outcome = train_in_session("s", SETTINGS, until_step=4, saving=Saving(lambda s: s.save(path), 1))
    assert outcome.report.steps == 4
    assert caplog.messages == [
        f"step 1: {path} cannot be written: File too large; training goes on, and what was saved before stays"
    ]
    assert DeviceCheckpoint.load(path, "s").step == 5


def test_saving_is_said_to_work_again(path, caplog):
    saving = Saving(lambda s: s.save(path))
    with full_disk(1_000):
        saving.keep(state(6))
    assert "File too large" in saving.trouble
    saving.keep(state(7))
    assert saving.trouble == ""
    assert caplog.messages[-1] == "step 7: the state is saved again"
    assert DeviceCheckpoint.load(path, "s").step == 7


def test_the_command_ends_well_and_warns_that_the_state_is_not_saved(path, monkeypatch):
    monkeypatch.setattr("signal.signal", lambda number, handler: handler)
    with monkeypatch.context() as patch:
        read_only(patch, path.parent)
        arguments = ["train", "--session", "s2", "--state", str(path), "-c", "steps=2", "-c", "task=own_data:OwnData"]
        result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert f"WARNING: the last state is not saved: {path} cannot be written: Read-only file system" in result.output
    assert DeviceCheckpoint.load(path, "s").step == 5


def test_a_training_whose_model_finds_no_room_still_gives_its_weights(tmp_path, monkeypatch):
    data = DataRequest({"task": "own_data:OwnData", "batch-size": 8})

    def train(request, of, saved, on_step, *, tls, saving, publishing, require):
        return train_in_session(request.session, of.settings, until_step=request.steps, saving=saving)

    monkeypatch.setattr(trainer_process, "train", train)
    runner = JobRunner(
        Start(tmp_path / "state", 1, 0, 1, None, LogConfig(), allow_tasks=("own_data:OwnData",)), connection=None
    )
    with full_disk(1_000):
        done = runner.do(TrainRequest(data, "nowhere", "s", "d", 0, 2, b""))
    assert done.model is None
    assert done.trouble == f"{tmp_path}/state/trained.pt cannot be written: File too large"
    assert read_weights(done.weights)
    assert list((tmp_path / "state").iterdir()) == []
