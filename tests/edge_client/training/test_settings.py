import inspect

import pytest

from edge_client import NewtonOptimizer
from edge_client.training.settings import (
    OPTIMIZER_OPTIONS,
    SettingsError,
    TrainSettings,
    check_settings,
    parse_settings,
)


def test_defaults_are_those_of_the_optimizer():
    parameters = inspect.signature(NewtonOptimizer).parameters
    assert TrainSettings().optimizer_options() == {name: parameters[name].default for name in OPTIMIZER_OPTIONS}


def test_every_option_of_the_optimizer_can_be_set():
    parameters = set(inspect.signature(NewtonOptimizer).parameters)
    assert parameters - {"model", "exchange", "param_groups", "training_samples", "state"} == set(OPTIMIZER_OPTIONS)


def test_settings_are_written_as_in_flwr_run():
    settings = parse_settings(["steps=50", "curvature='eva'", "curvature-scope=local", "lr = 0.5"])
    assert (settings.steps, settings.curvature, settings.curvature_scope, settings.lr) == (50, "eva", "local", 0.5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stepz=5", "setting 'stepz' is unknown; known are task, steps, batch-size"),
        ("steps=0", "setting 'steps' is 0: Input should be greater than or equal to 1"),
        ("steps=many", "setting 'steps' is 'many'"),
        ("batch-size=-1", "setting 'batch-size' is -1"),
        ("partition=random", "setting 'partition' is 'random'"),
        ("curvature-scope=global", "setting 'curvature-scope' is 'global'"),
        ("damping=0", "setting 'damping' is 0"),
        ("momentum=none", "setting 'momentum' is 'none'"),
        ("lr=nan", "setting 'lr' is nan"),
        ("steps", "'steps' is not of the form name=value"),
    ],
)
def test_unknown_and_impossible_settings_are_named(text, message):
    with pytest.raises(SettingsError, match=message):
        parse_settings([text])


def test_what_is_left_to_the_optimizer_is_written_auto():
    assert parse_settings(["damping=auto", "momentum='auto'"]) == TrainSettings()
    assert parse_settings(["damping=0.5"]).damping == 0.5


def test_all_problems_are_named_at_once():
    with pytest.raises(SettingsError, match="'steps' is 0.*; setting 'colour' is unknown"):
        check_settings({"steps": 0, "colour": "red"})
