"""That Flower can start what pyproject.toml names, with the settings that stand there."""

import tomllib
from importlib import import_module
from pathlib import Path

from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flower_app.task import FlowerAppTask

from coordinator.flower.run_config import split_run_config
from edge_client.tasks import load_task
from edge_client.training.settings import check_settings

APP = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["tool"]["flwr"]["app"]


def component(kind):
    module, _, attribute = APP["components"][kind].partition(":")
    return getattr(import_module(module), attribute)


def test_the_components_are_what_flower_expects():
    assert isinstance(component("clientapp"), ClientApp)
    assert isinstance(component("serverapp"), ServerApp)


def test_the_settings_are_right_and_name_the_task():
    run, device = split_run_config(APP["config"])
    assert run.rounds <= run.steps
    assert isinstance(load_task(check_settings(device).task), FlowerAppTask)
