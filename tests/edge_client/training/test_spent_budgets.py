"""A training under a privacy budget ends by itself, as a success, when that is spent: command, session and daemon."""

import json
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest
from edgenewton.v1.privacy_options import AgreedBudget
from typer.testing import CliRunner

from coordinator.serving.server import embedded_coordinator
from coordinator.session.decisions import Phase
from coordinator.session.settings import SessionSettings
from edge_client.cli import app
from edge_client.daemon.config import LogConfig
from edge_client.daemon.messages import EvaluateMessage, Failed, Start, Trained
from edge_client.daemon.trainer_process import JobRunner
from edge_client.exchange.remote import GradientExchange
from edge_client.training.checkpoint import DeviceCheckpoint
from edge_client.training.jobs import dump_weights, initial_weights
from edge_client.training.run import train_in_session
from edge_client.training.settings import check_settings
from edge_client.training.work import DataRequest, TrainRequest

DELTA = 1e-5
NAMES = {"device": "epsilon", "sample": "sample-epsilon"}
PRIVATE = {
    "batch-size": 8,
    "cadence": "local-steps",
    "local-steps": 2,
    "steps": 6,
    "epsilon": 2.0,
    "clip-norm": 0.1,
    "noise-devices": 2,
}


@pytest.fixture
def coordinator():
    with embedded_coordinator() as embedded:
        yield embedded


def both(do):
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(do, range(2)))


def trained(coordinator, device, until_step, saved=None):
    return train_in_session(
        "s",
        check_settings(PRIVATE),
        device,
        2,
        until_step=until_step,
        connect=lambda: GradientExchange.connect(coordinator.address, session="s", device=f"d{device}"),
        weights=saved and saved.model,
        state=saved and saved.optimizer,
    )


def partly_spent(coordinator):
    """Return the states of two devices that have spent two of three exchanges, as if they had come from step 0."""
    coordinator.create_session("s", SessionSettings(devices=2))
    states = [outcome.state for outcome in both(lambda device: trained(coordinator, device, 4))]
    for state in states:
        state.optimizer["sync"]["step"] = 0
    return states


@pytest.mark.parametrize("is_masked", [False, True])
def test_the_session_ends_well_and_the_command_says_why(coordinator, tmp_path, monkeypatch, is_masked):
    monkeypatch.setattr(signal, "signal", lambda number, handler: handler)
    states = partly_spent(coordinator)
    states[0].save(tmp_path / "state")
    options = [text for name, value in PRIVATE.items() for text in ("-c", f"{name}={value}")]
    place = ["--device", "d0", "--index", "0", "--count", "2", "--session", "s", "--state", str(tmp_path / "state")]
    with embedded_coordinator() as second:
        second.create_session("s", SessionSettings(devices=2, secure_aggregation=is_masked))
        with ThreadPoolExecutor(1) as pool:
            other = pool.submit(trained, second, 1, 6, states[1])
            result = CliRunner().invoke(app, ["train", "--coordinator", second.address, *place, "--json", *options])
            report = other.result().report
        room = second.directory.find("s")
        assert room.session.phase is Phase.ENDED
        assert "the privacy budget is spent: 3 exchanges took epsilon 2 of 2" in room.session.reason
        statistics = room.chronicle.statistics
        assert statistics.epsilon == pytest.approx(2.0, rel=1e-6)
        assert {device.state for device in statistics.devices.values()} == {"finished"}
        assert statistics.privacy.name == ("masked, privacy budget" if is_masked else "privacy budget")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert (told["steps"], told["step"], told["is_budget_spent"]) == (2, 2, True)
    assert told["epsilon"] == pytest.approx(2.0, rel=1e-6)
    assert told["budget"] == {"epsilon": 2.0, "delta": DELTA}
    assert "WARNING: the privacy budget is spent" in result.stderr
    assert (report.steps, report.is_budget_spent) == (2, True)


@pytest.mark.parametrize(
    ("settings", "unit"),
    [
        ({"cadence": "local-steps"}, "device"),
        ({"cadence": "every-batch"}, "device"),
        ({"cadence": "every-batch", "privacy-unit": "sample", "passes": 1}, "sample"),
    ],
)
def test_every_plan_tells_the_coordinator_what_was_spent(coordinator, settings, unit):
    coordinator.create_session("s", SessionSettings(devices=2))
    checked = check_settings(PRIVATE | settings | {"steps": 2})

    def train(device):
        return train_in_session(
            "s",
            checked,
            device,
            2,
            until_step=2,
            connect=lambda: GradientExchange.connect(
                coordinator.address, session="s", device=f"d{device}", require=[f"{NAMES[unit]}<=2"]
            ),
        ).report.epsilon

    spent = both(train)
    statistics = coordinator.directory.find("s").chronicle.statistics
    assert statistics.epsilon == spent[0] == spent[1] == pytest.approx(2.0, rel=1e-6)
    assert statistics.budget == AgreedBudget(2.0, DELTA, unit)


def runner_of(folder, device, *require):
    (folder / f"d{device}").mkdir(exist_ok=True)

    class Connection:
        def send(self, message):
            pass

    return JobRunner(Start(folder / f"d{device}", 1, 0, 1, None, LogConfig(), require=require), Connection())


def request_of(coordinator, device, weights, session, first_step, **settings):
    data = DataRequest({**PRIVATE, **settings}, device, 2)
    return TrainRequest(data, coordinator.address, session, f"d{device}", first_step, 2, weights)


def test_a_daemon_hands_in_what_it_trained_and_trains_no_more(coordinator, tmp_path):
    """Four rounds of two batches are asked for where the budget is for three exchanges."""
    runners = [runner_of(tmp_path, device, "epsilon<=2") for device in range(2)]
    weights, first, done = dump_weights(initial_weights(check_settings(PRIVATE))), 0, []
    for number in range(4):
        coordinator.create_session(f"r{number}", SessionSettings(devices=2, first_step=first))
        asked = [request_of(coordinator, device, weights, f"r{number}", first) for device in range(2)]
        done.append(both(lambda device: runners[device].do(asked[device])))  # noqa: B023
        assert all(isinstance(result, Trained) for result in done[-1]), done[-1]
        first, weights = done[-1][0].report.step, done[-1][0].weights
    assert [[result.report.steps for result in results] for results in done] == [[2, 2], [2, 2], [2, 2], [0, 0]]
    assert [results[0].report.is_budget_spent for results in done] == [False, False, False, True]
    assert done[2][0].report.epsilon == done[3][0].report.epsilon == pytest.approx(2.0, rel=1e-6)
    assert "the privacy budget is spent" in done[3][1].report.ended
    assert DeviceCheckpoint.read(tmp_path / "d0" / "trainer.pt").step == 6


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"epsilon": "never", "clip-norm": "never", "noise-devices": "never"}, "no privacy budget"),
        ({}, "epsilon=2: set"),
    ],
)
def test_a_daemon_that_insists_on_a_budget_trains_with_no_other_settings(coordinator, tmp_path, settings, text):
    coordinator.create_session("s", SessionSettings(devices=2))
    weights = dump_weights(initial_weights(check_settings(PRIVATE)))
    failed = runner_of(tmp_path, 0, "epsilon<=1").do(request_of(coordinator, 0, weights, "s", 0, **settings))
    assert isinstance(failed, Failed)
    assert "device 'd0' insists on epsilon<=1, and is to train with" in failed.reason
    assert text in failed.reason
    assert not coordinator.directory.find("s").session.members


@pytest.mark.parametrize(("settings", "require"), [({}, ["epsilon<=1"]), (PRIVATE, [])])
def test_a_daemon_does_not_tell_what_no_budget_covers(tmp_path, settings, require):
    failed = runner_of(tmp_path, 0, *require).do(EvaluateMessage(DataRequest(settings), b""))
    assert "held-out samples a model recognises is not covered by a privacy budget" in failed.reason
