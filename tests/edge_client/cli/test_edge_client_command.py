import signal

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from edge_client import cli
from edge_client.inference import Artefact
from edge_client.tasks import load_task
from edge_client.training.settings import TrainSettings
from edge_client.training.trainer import build_model


@pytest.fixture
def run(monkeypatch):
    monkeypatch.setattr(signal, "signal", lambda number, handler: handler)
    return lambda *arguments: CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "round-1.safetensors"
    weights = build_model(load_task("digits"), seed=0).state_dict()
    save_file(weights, path, {"task": "digits", "step": "7"})
    return path


@pytest.fixture(params=["below a file", "a folder"])
def unwritable(request, tmp_path):
    """Return a place for a model that cannot be, and what is said of it."""
    if request.param == "a folder":
        return tmp_path, f"{tmp_path} is a folder; name a file for the model, such as {tmp_path}/model.pt"
    (tmp_path / "file").touch()
    return tmp_path / "file" / "m.pt", f"no model can be written to {tmp_path}/file/m.pt: File exists"


def test_train_checks_where_the_model_goes_before_it_trains(run, monkeypatch, unwritable):
    trained = []
    monkeypatch.setattr(
        "edge_client.training.trainer.Trainer.train", lambda self, steps, on_step: trained.append(steps)
    )
    output, message = unwritable
    result = run("train", "-c", "steps=1", "--output", output)
    assert result.exit_code == 1
    assert message in result.output
    assert not trained


def test_export_says_where_it_cannot_write(run, checkpoint, unwritable):
    output, message = unwritable
    result = run("export", checkpoint, "--output", output)
    assert result.exit_code == 1
    assert message in result.output
    assert "Traceback" not in result.output


def test_a_disk_that_fills_during_the_work_is_said(run, monkeypatch, checkpoint, tmp_path):
    def full(content, file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    result = run("export", checkpoint, "--output", tmp_path / "model.pt")
    assert result.exit_code == 1
    assert f"the model could not be written to {tmp_path}/model.pt: [Errno 28] No space left" in result.output
    assert not list(tmp_path.glob("*model.pt*"))


def test_train_makes_the_folder_and_saves(run, tmp_path):
    path = tmp_path / "new [folder]" / "model.pt"
    result = run("train", "-c", "steps=1", "--output", path)
    assert result.exit_code == 0, result.output
    assert f"model saved as {path}" in result.output
    assert Artefact.load(path).step == 1
    assert TrainSettings().task == Artefact.load(path).task


def test_a_checkpoint_without_the_personal_layers_is_no_model(run, tmp_path):
    weights = build_model(load_task("digits"), seed=0).state_dict()
    del weights["output.weight"]
    save_file(weights, tmp_path / "round-1.safetensors", {"task": "digits", "step": "7"})
    result = run("export", tmp_path / "round-1.safetensors", "--output", tmp_path / "m.pt")
    assert result.exit_code == 1
    assert "it lacks 'output.weight', which is 10 x" in result.output
    assert "take a device's own model" in " ".join(result.output.split())
    assert not (tmp_path / "m.pt").exists()


def test_serve_says_that_its_repository_is_no_folder(run, tmp_path):
    task = load_task("digits")
    Artefact.of(task, "digits", task.model(), 1).save(tmp_path / "model.pt")
    result = run("serve", tmp_path / "model.pt", "--repository", tmp_path / "models")
    assert result.exit_code == 1
    assert "is no folder" in result.output
