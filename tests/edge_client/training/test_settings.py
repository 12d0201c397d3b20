import dataclasses
import inspect

import pytest

from edge_client import (
    Curvature,
    EveryBatch,
    IterateAverage,
    LocalCurvature,
    NewtonOptimizer,
    Refresh,
    Schedule,
    TrustRegion,
)
from edge_client.training.settings import (
    SettingsError,
    TrainSettings,
    check_settings,
    parse_settings,
    setting_names,
)


def test_every_option_of_the_optimizer_can_be_set_and_has_its_default():
    parameters = inspect.signature(NewtonOptimizer).parameters
    options = TrainSettings().optimizer_options()
    assert set(options) == set(parameters) - {"params_or_model", "model", "sync", "maximize"}
    assert {name: options[name] for name in ("lr", "momentum", "weight_decay")} == {
        name: parameters[name].default for name in ("lr", "momentum", "weight_decay")
    }
    groups = (Curvature(), TrustRegion(), Refresh(), IterateAverage())
    assert tuple(options[name] for name in ("curvature", "trust", "refresh", "averaging")) == groups
    assert parameters["averaging"].default == IterateAverage()
    fields = {field.name for group in groups for field in dataclasses.fields(group)} - {"estimator", "decay"}
    assert {field.replace("_", "-") for field in fields} | {"curvature", "averaging"} <= set(setting_names())


def test_flat_settings_make_the_same_settings_again():
    settings = parse_settings(
        ["curvature=eva", "kl-clip=inf", "adapt-every=3", "factor-every=7", "lr=0.5", "averaging=0"]
    )
    assert settings.trust == TrustRegion(kl_clip=float("inf"), adapt_every=3)
    assert settings.refresh == Refresh(factor_every=7)
    assert settings.averaging == IterateAverage(0)
    assert check_settings(settings.flat()) == settings


def test_each_scope_has_its_plan():
    assert type(TrainSettings().plan()) is EveryBatch
    plan = parse_settings(["curvature-scope=local", "sync-every=3"]).plan()
    assert isinstance(plan, LocalCurvature)
    assert plan.options == {"curvature_scope": "local", "sync_every": 3}


def test_settings_are_written_as_in_flwr_run():
    settings = parse_settings(["steps=50", "curvature='eva'", "curvature-scope=local", "lr = 0.5"])
    assert (settings.steps, settings.curvature, settings.curvature_scope, settings.lr) == (
        50,
        Curvature("eva"),
        "local",
        0.5,
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stepz=5", "setting 'stepz' is unknown; did you mean 'steps'"),
        ("steps=0", "setting 'steps' is 0: Input should be greater than or equal to 1"),
        ("steps=many", "setting 'steps' is 'many'"),
        ("batch-size=-1", "setting 'batch-size' is -1"),
        ("seed=-1", "setting 'seed' is -1: Input should be greater than or equal to 0"),
        ("seed=99999999999999999999", "setting 'seed' is .*less than or equal to 1000000000"),
        ("partition=random", "setting 'partition' is 'random'"),
        ("curvature-scope=global", "setting 'curvature-scope' is 'global'"),
        ("damping=0", "setting 'damping' is 0"),
        ("averaging=1.5", "setting 'averaging' is 1.5: it must be below 1"),
        ("momentum=none", "setting 'momentum' is 'none'"),
        ("lr=nan", "setting 'lr' is nan"),
        ("schedule=cosin", "setting 'schedule' is 'cosin'"),
        ("lr-warmup-steps=5", "setting 'lr-warmup-steps' is 5: the schedule 'constant' has no warm-up"),
        ("lr-floor=2", "setting 'lr-floor' is 2"),
        ("steps", "'steps' is not of the form name=value"),
    ],
)
def test_unknown_and_impossible_settings_are_named(text, message):
    with pytest.raises(SettingsError, match=message):
        parse_settings([text])


def test_a_schedules_length_is_that_of_the_run():
    settings = parse_settings(["schedule=warmup-cosine", "steps=90", "lr-warmup-steps=9"])
    assert settings.optimizer_options()["schedule"] == Schedule("warmup-cosine", 90, warmup_steps=9)
    assert check_settings(settings.flat()) == settings
    longer = parse_settings(["schedule=cosine", "steps=90", "schedule-steps=300"])
    assert longer.optimizer_options()["schedule"] == Schedule("cosine", 300)
    with pytest.raises(SettingsError, match="setting 'lr-warmup-steps' is 90: it must leave something of the run's 90"):
        parse_settings(["schedule=warmup-cosine", "steps=90", "lr-warmup-steps=90"])


def test_what_is_left_to_the_optimizer_is_written_auto():
    assert parse_settings(["damping=auto", "momentum='auto'"]) == TrainSettings()
    assert parse_settings(["damping=0.5"]).trust.damping == 0.5


def test_all_problems_are_named_at_once():
    with pytest.raises(SettingsError, match="'steps' is 0.*; setting 'colour' is unknown"):
        check_settings({"steps": 0, "colour": "red"})
