import tomllib
from pathlib import Path

import pytest

from coordinator.flower.run_config import RunConfig, RunConfigError, split_run_config
from edge_client.training.settings import TrainSettings, check_settings, setting_names

VALUES = {"task": "digits", "devices": 4, "steps": 60, "rounds": 3}


def test_the_run_config_of_the_app_names_every_setting_with_its_default():
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())
    values = project["tool"]["flwr"]["app"]["config"]
    assert set(values) == {name.replace("_", "-") for name in RunConfig.model_fields} | set(setting_names())
    config, device_settings = split_run_config(values)
    assert check_settings(device_settings) == TrainSettings()
    assert config == RunConfig(**VALUES)


def test_rounds_divide_the_steps_evenly():
    config = RunConfig(task="digits", devices=2, steps=10, rounds=4)
    borders = [config.steps_before(number) for number in range(1, 6)]
    assert borders == [0, 2, 5, 7, 10]


def test_a_rounds_session_has_the_quorum_of_those_that_it_chose():
    config = RunConfig(task="digits", devices=4, steps=10, rounds=4, quorum=3, lease_s=2, fraction_train=0.5)
    settings = config.session_settings(first_step=5, devices=2)
    assert (settings.first_step, settings.devices, settings.quorum, settings.lease_s) == (5, 2, 2, 2)
    assert config.session_settings(0, devices=4).quorum == 3
    assert RunConfig(**VALUES).session_settings(0, devices=4).required == 4


def test_a_rounds_session_has_the_aggregator_of_the_run():
    told = {"aggregator": "history", "bad-devices": 1, "max-samples": 64}
    config, _ = split_run_config(VALUES | told)
    settings = config.session_settings(0, devices=4)
    assert (settings.aggregator, settings.bad_devices, settings.max_samples) == ("history", 1, 64)
    assert config.session_settings(0, devices=2).bad_devices == 0  # of two none can be outvoted
    settings = RunConfig(**VALUES).session_settings(0, devices=4)
    assert (settings.aggregator, settings.bad_devices, settings.max_samples) == ("mean", None, None)


def test_a_rounds_session_masks_as_the_run_says():
    config, _ = split_run_config(VALUES | {"secure-aggregation": True, "mask-bits": 4})
    settings = config.session_settings(0, devices=4)
    assert (settings.secure_aggregation, settings.mask_bits, settings.codec) == (True, 4, "int8")
    assert not RunConfig(**VALUES).session_settings(0, devices=4).secure_aggregation


def test_settings_of_the_devices_are_passed_on():
    config, device_settings = split_run_config(VALUES | {"curvature": "eva", "step-deadline-s": 5})
    assert device_settings == {"task": "digits", "steps": 60, "curvature": "eva"}
    assert config.step_deadline_s == 5


def test_a_rounds_session_admits_whom_the_run_names():
    secured = VALUES | {"coordinator": "gateway:1", "tls": "folder", "allow": "d0, d1,", "allow-labels": "factory"}
    config, device_settings = split_run_config(secured)
    settings = config.session_settings(0, devices=4)
    assert (settings.allow, settings.allow_labels) == (("d0", "d1"), ("factory",))
    assert device_settings == {"task": "digits", "steps": 60}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"devices": 0}, r"devices: .*greater than or equal to 1 \(it is 0\)"),
        ({"codec": "zip"}, r"codec: .*'fp32', 'bf16', 'fp16', 'int8', 'powersgd', 'topk', 'int4', .* \(it is 'zip'\)"),
        ({"quorum": 5}, "quorum 5 is more than the run's 4 devices"),
        ({"fraction-train": 0}, "fraction-train: "),
        ({"bad-devices": 2}, "bad-devices 2 is half of the run's 4 devices, or more"),
        ({"aggregator": "bulyan"}, r"aggregator: .*'history' \(it is 'bulyan'\)"),
        ({"rounds": 61}, "60 steps cannot be divided over 61 rounds"),
        ({"step-deadline-s": -1}, "step-deadline-s: "),
        ({"coordinator": "gateway"}, "coordinator: .*(it is 'gateway')"),
        ({"tls": "a,b"}, "tls: .*'a,b' is neither a folder with certificates nor three files"),
        ({"tls": "folder"}, "tls and server-tls belong together"),
        ({"coordinator": "gateway:1", "server-tls": "a,b,c"}, "server-tls is for a coordinator inside the ServerApp"),
        ({"allow": "d0, d1"}, "allow and allow-labels need tls"),
    ],
)
def test_impossible_values_are_named(changes, message):
    with pytest.raises(RunConfigError, match=message):
        split_run_config(VALUES | changes)
