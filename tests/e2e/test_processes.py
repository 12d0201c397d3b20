"""One coordinator and several devices, each a process of its own, on loopback."""

import contextlib
import signal
import subprocess

import pytest
import torch
from processes import CLIENT, COORDINATOR, IMPATIENT, Coordinator, running, train_on_devices

from benchmarks.shared.union_batch import train_union
from coordinator.telemetry.watch import follow
from edge_client import NewtonOptimizer
from edge_client.inference import Artefact
from edge_client.training.settings import parse_settings

pytestmark = pytest.mark.processes

DEVICES = 3
STEPS = 20


def models(folder):
    return [Artefact.load(folder / f"{index}.pt").weights for index in range(DEVICES)]


def assert_bit_identical(weights):
    for other in weights[1:]:
        assert all(torch.equal(tensor, other[name]) for name, tensor in weights[0].items())


@pytest.mark.parametrize(
    "options",
    # The smaller the damping, the more it amplifies the order in which float32 sums are formed.
    [("curvature=kfac", "damping=0.03"), ("curvature=eva",)],
    ids=["kfac", "eva"],
)
def test_shared_scope_is_training_on_the_union_batch(tmp_path, options):
    options = (f"steps={STEPS}", "task=smooth_digits:SmoothDigitsTask", "cadence=every-batch", *options)
    with Coordinator("union", DEVICES) as coordinator:
        train_on_devices(coordinator.address, "union", DEVICES, tmp_path, *options)
        assert coordinator.wait() == 0
    weights = models(tmp_path)
    assert_bit_identical(weights)

    settings = parse_settings(options)
    alone, accuracies = train_union(
        settings, DEVICES, lambda model: NewtonOptimizer(model, **settings.optimizer_options())
    )
    difference = max((tensor - weights[0][name]).abs().max().item() for name, tensor in alone.state_dict().items())
    assert difference < 1e-5
    assert accuracies[-1] > 0.5  # it was no standstill that was compared


def test_the_default_settings_end_with_one_model(tmp_path):
    with Coordinator("defaults", DEVICES) as coordinator:
        outputs = train_on_devices(coordinator.address, "defaults", DEVICES, tmp_path, f"steps={STEPS}")
        assert coordinator.wait() == 0
    assert_bit_identical(models(tmp_path))
    assert all("20 steps" in output for output in outputs)


def test_local_scope_ends_with_one_model(tmp_path):
    with Coordinator("local", DEVICES) as coordinator:
        train_on_devices(
            coordinator.address,
            "local",
            DEVICES,
            tmp_path,
            "steps=7",
            "cadence=every-batch",
            "curvature-scope=local",
            "sync-every=3",
        )
        assert coordinator.wait() == 0
    assert_bit_identical(models(tmp_path))


def test_devices_that_begin_with_other_weights_take_those_of_the_session(tmp_path):
    with Coordinator("seeds", 2) as coordinator:
        train_on_devices(coordinator.address, "seeds", 2, tmp_path, "steps=3", "seed={index}")
    assert_bit_identical([Artefact.load(tmp_path / f"{index}.pt").weights for index in range(2)])


def wait_for_step(address: str) -> None:
    """Return once a step has been committed."""
    next(event for event in follow(address) if event.WhichOneof("event") == "step")


def test_a_killed_device_releases_the_others_with_a_reason():
    arguments = "--session killed -c steps=100000 -c curvature=eva"
    with Coordinator("killed", 2, *IMPATIENT) as coordinator, contextlib.ExitStack() as stack:
        place = ("--coordinator", coordinator.address, *arguments.split())
        clients = [stack.enter_context(running("train", *place, "--device", f"d{index}")) for index in range(2)]
        wait_for_step(coordinator.address)
        clients[0].kill()
        output, _ = clients[1].communicate(timeout=60)
        assert clients[1].returncode == 1
        assert "device 'd0' left in step" in output.replace("\n", " ")
        assert coordinator.wait() == 1


def test_sigterm_ends_coordinator_and_device_in_order():
    with Coordinator("stopped", 1) as coordinator:
        place = f"--coordinator {coordinator.address} --session stopped -c steps=100000"
        with running("train", *place.split()) as client:
            wait_for_step(coordinator.address)
            coordinator.process.send_signal(signal.SIGTERM)
            output, _ = client.communicate(timeout=60)
        assert client.returncode == 1
        assert "the coordinator was stopped" in output.replace("\n", " ")


def run_client(*arguments) -> tuple[int, str]:
    with running(*arguments) as client:
        output, _ = client.communicate(timeout=60)  # far more than the seconds it may wait, far less than for ever
    return client.returncode, " ".join(output.split())


def test_a_wrong_address_is_said_within_seconds():
    code, output = run_client("train", "--coordinator", "127.0.0.1:9")
    assert code == 1
    assert "error: no coordinator answers at 127.0.0.1:9 within 5 s" in output
    assert "Traceback" not in output


def test_a_session_that_does_not_exist_is_named():
    with Coordinator("leaves", 1) as coordinator:
        code, output = run_client("train", "--coordinator", coordinator.address, "--session", "trees")
    assert code == 1
    assert "session 'trees' does not exist; sessions on this coordinator: 'leaves'" in output


def test_an_unknown_setting_is_named():
    code, output = run_client("train", "-c", "stepz=3")
    assert code == 1
    assert "error: setting 'stepz' is unknown; did you mean 'steps'" in output


def test_the_commands_teach():
    for command, words in ((CLIENT, ["train", "predict", "export"]), (COORDINATOR, ["serve", "watch"])):
        text = subprocess.run([command, "--help"], capture_output=True, text=True, check=True, timeout=60).stdout
        assert all(word in text for word in words)
