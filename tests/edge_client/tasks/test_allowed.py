"""Models that name a task by its import path: whose code runs, and whose does not."""

import json
import sys
from importlib.metadata import EntryPoint

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from edge_client.cli import app
from edge_client.inference import Artefact, Recognizer
from edge_client.tasks import TaskError, TaskNotAllowedError, allowed, load_foreign_task
from edge_client.tasks.digits import DigitsTask
from edge_client.training.own_process import OwnProcess
from edge_client.training.work import WorkError

CODE = """
from edge_client.tasks.digits import DigitsTask
class Theirs(DigitsTask):
    name = "theirs"
"""
NAME = "strangers_task:Theirs"


@pytest.fixture
def model(tmp_path, monkeypatch):
    (tmp_path / "strangers_task.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "strangers_task", raising=False)
    torch.manual_seed(1)
    path = tmp_path / "model.pt"
    Artefact.of(DigitsTask(), NAME, DigitsTask().model(), 7).save(path)
    DigitsTask().sample_image(0).save(tmp_path / "digit.png")
    return path


def was_imported():
    return "strangers_task" in sys.modules


def test_the_task_of_a_file_is_imported_only_if_it_is_allowed(model):
    with pytest.raises(TaskNotAllowedError, match=f"task '{NAME}' .* add --allow-task {NAME}"):
        Recognizer.load(model)
    with pytest.raises(TaskNotAllowedError):
        Recognizer.load(model, allow=["strangers_task:Other", "strangers_task"])
    assert not was_imported()
    assert Recognizer.load(model, allow=[NAME]).info.task == NAME
    assert was_imported()


@pytest.mark.parametrize("name", ["digits", "edge_client.tasks.digits:DigitsTask"])
def test_tasks_of_this_package_are_always_allowed(name):
    assert load_foreign_task(name).name == "digits"


@pytest.mark.parametrize("name", ["os:system", "edge_client.cli:main", "edge_client.tasks_of_others:X", ":"])
def test_nothing_else_is(name):
    with pytest.raises(TaskNotAllowedError):
        load_foreign_task(name)


@pytest.mark.parametrize("name", ["", "trees"])
def test_what_names_no_code_is_unknown(name):
    with pytest.raises(TaskError, match="is unknown"):
        load_foreign_task(name)


def test_what_an_installed_package_announces_is_allowed(model, monkeypatch):
    announced = EntryPoint("theirs", NAME, allowed.ENTRY_POINT_GROUP)
    monkeypatch.setattr(allowed, "entry_points", lambda *, group: [announced] * (group == "edgenewton.tasks"))
    assert Recognizer.load(model).info.task == NAME


def test_every_command_that_loads_a_model_asks(model, tmp_path):
    checkpoint = tmp_path / "round-1.safetensors"
    save_file(dict(DigitsTask().model().state_dict()), checkpoint, {"task": NAME, "step": "1"})
    for arguments in (
        ("predict", model, tmp_path / "digit.png"),
        ("evaluate", model),
        ("serve", model),
        ("export", model, "--format", "onnx", "--output", tmp_path / "model.onnx"),
        ("export", checkpoint, "--output", tmp_path / "exported.pt"),
    ):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert result.exit_code == 1
        assert f"--allow-task {NAME}" in " ".join(result.stderr.split())
        assert not was_imported()
    result = CliRunner().invoke(app, ["predict", str(model), str(tmp_path / "digit.png"), "--allow-task", NAME])
    assert result.exit_code == 0, result.output


def test_a_run_that_comes_over_flower_asks_too(model):
    with pytest.raises(WorkError, match=f"task '{NAME}' is not of this package"):
        OwnProcess(None, None).initial_weights({"task": NAME})
    assert not was_imported()
    assert OwnProcess(None, None, [NAME]).initial_weights({"task": NAME})


def test_the_daemon_tells_its_process_what_is_allowed(tmp_path):
    from edge_client.daemon.config import load_config
    from edge_client.daemon.messages import Failed, InitialWeightsMessage, Start
    from edge_client.daemon.trainer_process import JobRunner

    (tmp_path / "daemon.toml").write_text(f"state_dir = {json.dumps(str(tmp_path))}\n[model]\nallow_tasks = ['{NAME}']")
    config = load_config(tmp_path / "daemon.toml")
    assert config.model.allow_tasks == (NAME,)
    start = Start(tmp_path, 1, 0, 0, None, config.log)
    refused = JobRunner(start, None).do(InitialWeightsMessage({"task": NAME}))
    assert isinstance(refused, Failed)
    assert f"--allow-task {NAME}" in refused.reason
