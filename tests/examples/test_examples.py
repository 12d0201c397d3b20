"""Each example runs as its page says; only processes are threads here."""

import importlib.util
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from typer.testing import CliRunner

from coordinator.serving.server import embedded_coordinator
from coordinator.session.settings import SessionSettings
from edge_client.cli import app
from edge_client.daemon.config import load_config
from edge_client.tasks import SampleError

EXAMPLES = Path(__file__).parents[2] / "examples"


def load(path):
    """Return the module of a script."""
    spec = importlib.util.spec_from_file_location(path.stem, EXAMPLES / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def test_own_loop():
    device = load(Path("own-loop/device.py"))
    with embedded_coordinator() as coordinator, ThreadPoolExecutor() as devices:
        coordinator.create_session("moons", SessionSettings(devices=2))
        answers = [
            devices.submit(device.main, ["--coordinator", coordinator.address, "--device", name, "--moon", moon])
            for name, moon in (("a", "0"), ("b", "1"))
        ]
        accuracies = [answer.result(timeout=170) for answer in answers]
    assert accuracies[0] == accuracies[1] > 0.95


@pytest.fixture
def sensor(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES / "stream")
    with load(Path("stream/sensor.py")).Sensor(0) as sensor:
        thread = threading.Thread(target=sensor.serve_forever, daemon=True)
        thread.start()
        monkeypatch.setenv("SENSOR", f"127.0.0.1:{sensor.server_address[1]}")
        monkeypatch.setenv("EDGENEWTON_ALLOW_TASK", "stream_task:StreamTask")
        yield
        sensor.shutdown()
        thread.join(10)
    sys.modules.pop("stream_task", None)


def test_stream(sensor, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run("train", "-c", "task=stream_task:StreamTask", "-c", "steps=150", "--output", "stream.pt")
    told = run("evaluate", "stream.pt")
    assert float(re.search(r"accuracy ([\d.]+)% on 200 samples", told)[1]) > 85
    with pytest.raises(SampleError, match="the sensor sent '1,2,noise'"):
        sys.modules["stream_task"].parse("1,2,noise\n")


@pytest.mark.parametrize("adapters", [False, True])
def test_fine_tuning(tmp_path, adapters):
    fine_tune = load(Path("fine-tuning/fine_tune.py"))
    arguments = ["--backbone", str(tmp_path / "backbone.pt"), *(["--adapters"] if adapters else [])]
    assert fine_tune.main(arguments) > 0.9
    assert (tmp_path / "backbone.pt").exists()


def test_the_flower_app_is_what_the_command_writes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run("new", "flower-app", "--flower")

    def content(folder):
        return {
            path.relative_to(folder): path.read_text()
            for path in folder.rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }

    assert content(EXAMPLES / "flower-app") == content(tmp_path / "flower-app")


def test_the_configuration_of_a_raspberry_pi():
    config = load_config(EXAMPLES / "raspberry-pi" / "daemon.toml")
    assert (config.server.threads, config.training.threads) == (1, 2)


def test_the_script_of_a_raspberry_pi_says_what_it_needs(tmp_path):
    script = EXAMPLES / "raspberry-pi" / "install.sh"
    old = tmp_path / "python2"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    done = subprocess.run([script], env={"PATH": "/usr/bin:/bin", "PYTHON": str(old)}, capture_output=True, text=True)
    assert done.returncode == 1
    assert "install: Python 3.11 or newer is needed" in done.stderr


def test_the_wheels_for_arm64_are_of_the_versions_that_we_install():
    names = (EXAMPLES.parent / "constraints.txt").read_text().splitlines()
    pinned = {line.lower().replace("_", "-") for line in names}
    wheels = (EXAMPLES / "raspberry-pi" / "wheels.txt").read_text()
    listed = re.findall(r"^(\S+==\S+)  (\S+\.whl)$", wheels, re.MULTILINE)
    assert set(re.findall(r"^# Python (\S+),", wheels, re.MULTILINE)) == {"3.11", "3.12", "3.13"}
    assert len(listed) > 200
    assert [name for name, _ in listed if name not in pinned] == []
    assert [wheel for _, wheel in listed if not re.search(r"-(any|\w*aarch64(\.\w*aarch64)*)\.whl$", wheel)] == []
