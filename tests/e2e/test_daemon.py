"""The daemon as a process: what it is asked over its socket, and recognition meanwhile."""

import json
import os
import pickle
import signal
import socket
import stat
import subprocess
import threading
import time
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
import tritonclient.grpc as triton
from client_app_calls import context, rounds
from daemons import CLIENT, TASK, Daemon, artefact
from processes import IMPATIENT, Coordinator
from prometheus_client.parser import text_string_to_metric_families

from coordinator.serving.server import embedded_coordinator
from coordinator.session.settings import SessionSettings
from edge_client.daemon.client import DaemonClient, DaemonError
from edge_client.daemon.translation import train_to_proto
from edge_client.exchange.remote import GradientExchange
from edge_client.inference import Artefact, Recognizer
from edge_client.sync.replica import tensors_digest
from edge_client.training.jobs import dump_weights, initial_weights
from edge_client.training.run import averaged_weights
from edge_client.training.settings import TrainSettings
from edge_client.training.trainer import Trainer
from edge_client.training.work import DataRequest, TrainRequest

pytestmark = pytest.mark.processes

SETTINGS = TrainSettings(cadence="every-batch", curvature="eva", batch_size=16, steps=6)


@pytest.fixture
def daemon(short_tmp_path):
    with Daemon(short_tmp_path) as daemon:
        yield daemon


def run(*arguments):
    narrow = os.environ | {"COLUMNS": "40"}
    return subprocess.run([CLIENT, *arguments], capture_output=True, text=True, timeout=60, check=False, env=narrow)


def test_it_serves_says_what_it_does_and_takes_models(daemon, tmp_path):
    assert stat.S_IMODE(daemon.socket.stat().st_mode) == 0o600
    assert stat.S_IMODE(daemon.socket.parent.stat().st_mode) == 0o700
    artefact(2).save(tmp_path / "second.pt")
    promoted = run("promote", tmp_path / "second.pt", "--socket", daemon.socket)
    assert promoted.stdout == f"{tmp_path / 'second.pt'} serves as version 2\n"
    shown = run("status", "--config", daemon.config)
    assert "version 2 of task 'digits', 2 steps" in shown.stdout
    told = json.loads(run("status", "--socket", daemon.socket, "--json").stdout)
    assert (told["model"]["version"], told["model"]["versions"]) == ("2", ["1", "2"])

    image = tmp_path / "digit.png"
    TASK.save_sample(0, image)
    answer = httpx.post(f"http://{daemon.rest}/recognize", content=image.read_bytes()).json()
    (expected,) = Recognizer.of(artefact(2)).predict([image])
    assert (answer["label"], answer["version"]) == (expected.label, "2")

    # Bad artefacts are refused, and what served goes on.
    evil = tmp_path / "evil.pt"
    torch.save({"format": "edgenewton-model", "weights": Evil()}, evil)
    newer = tmp_path / "newer.pt"
    torch.save({"format": "edgenewton-model", "format_version": 99}, newer)
    (tmp_path / "pickle.pt").write_bytes(pickle.dumps(Evil()))
    (tmp_path / "empty.pt").touch()
    with daemon.client() as client:
        for name, words in {
            "evil.pt": "the model wants to run code when it is loaded; it was refused",
            "newer.pt": "the model has format version 99; this release reads up to 1",
            "pickle.pt": "it was refused",
            "empty.pt": "the model is empty",
        }.items():
            with pytest.raises(DaemonError, match=words):
                client.promote((tmp_path / name).read_bytes())
    assert not Path("ran").exists()  # the daemon runs in the same folder as this test
    assert httpx.post(f"http://{daemon.rest}/recognize", content=image.read_bytes()).json()["version"] == "2"
    assert daemon.stop() == 0
    assert not daemon.socket.exists()
    assert "Traceback" not in daemon.log


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("ran"),))


def test_twenty_swaps_under_load_neither_fail_nor_mix(daemon):
    """Each version always answers for itself: its own probabilities, in whole batches."""
    pixels = np.stack([np.asarray(TASK.sample_image(index)) for index in range(3)])
    expected = {str(version): Recognizer.of(artefact(version)).probabilities(pixels) for version in range(1, 22)}
    tensor = triton.InferInput("raw", pixels.shape, "UINT8")
    tensor.set_data_from_numpy(pixels)
    is_over, problems, seen = threading.Event(), [], set()

    def ask():
        with triton.InferenceServerClient(daemon.grpc) as client:
            while not is_over.is_set():
                try:
                    result = client.infer("model", [tensor], client_timeout=20)
                    version = result.get_response().model_version
                    np.testing.assert_allclose(result.as_numpy("probabilities"), expected[version], atol=1e-6)
                    seen.add(version)
                except Exception as error:
                    problems.append(error)
                    return

    clients = [threading.Thread(target=ask) for _ in range(4)]
    for client in clients:
        client.start()
    try:
        with daemon.client() as control:
            for version in range(2, 22):
                artefact(version).save(daemon.folder / "next.pt")
                assert control.promote((daemon.folder / "next.pt").read_bytes()) == version
    finally:
        is_over.set()
        for client in clients:
            client.join(timeout=30)
    assert not problems
    assert len(seen) > 5  # the versions did take turns under the load
    assert json.loads(run("status", "--socket", daemon.socket, "--json").stdout)["model"]["versions"] == [
        "19",
        "20",
        "21",
    ]


DATA = DataRequest(SETTINGS.flat(), 0, 1)
WEIGHTS = dump_weights(initial_weights(SETTINGS))


def request(coordinator, session, steps, weights=WEIGHTS, first_step=0, data=DATA):
    return TrainRequest(data, coordinator.address, session, "d0", first_step, steps, weights)


def training_metrics(daemon):
    families = text_string_to_metric_families(httpx.get(f"http://{daemon.rest}/metrics").text)
    samples = (sample for family in families for sample in family.samples if "training" in sample.name)
    return {" ".join((s.name, *(v for k, v in s.labels.items() if k != "le"))): s.value for s in samples}


def test_two_jobs_of_a_run_are_one_training_also_over_sigkill(daemon):
    alone = Trainer(SETTINGS, 0, 1)
    alone.train(6)
    seen = []
    with embedded_coordinator() as coordinator:
        coordinator.create_session("first", SessionSettings(devices=1))
        with daemon.client() as client:
            assert client.initial_weights(DATA.settings) == WEIGHTS
            report, weights = client.train(request(coordinator, "first", 4), seen.append)
            status = client.status()
        assert [step.step for step in seen] == [0, 1, 2, 3]
        assert report.steps == 4
        assert "4 steps, accuracy" in status.training.last
        assert (status.model.version, status.model.step) == (2, 4)

        measured = training_metrics(daemon)
        assert measured["edgenewton_training"] == 0  # none is on
        assert measured["edgenewton_training_steps_total"] == 4
        assert measured["edgenewton_training_exchange_seconds_count"] == 4
        assert 0 < measured["edgenewton_training_curvature_seconds_sum"] <= report.seconds
        assert 0 < measured["edgenewton_training_bytes_total sent"] <= report.bytes_sent
        assert measured["edgenewton_training_failures_total"] == 0
        daemon.process.kill()
        daemon.process.communicate()
        assert daemon.socket.exists()  # nothing was tidied up
        daemon.start()
        coordinator.create_session("second", SessionSettings(devices=1, first_step=4))
        with daemon.client() as client:
            assert client.status().model.version == 2
            report, weights = client.train(request(coordinator, "second", 2, weights, first_step=4))
            expected = averaged_weights(alone)
            assert report.weights_digest == tensors_digest(expected).hex()
            assert weights == dump_weights(expected)
            evaluation = client.evaluate(DATA, weights)
        assert evaluation == alone.evaluate()


def test_a_daemon_that_is_killed_in_the_middle_goes_on_from_what_it_saved(short_tmp_path):
    """The other device waits before its third step until the daemon is back, so that it cannot come too late."""
    is_back, reports = threading.Event(), []

    def train_other(address):
        exchange = GradientExchange.connect(address, session="both", device="d1")
        trainer = Trainer(SETTINGS, 1, 2, exchange)
        reports.append(trainer.train(6, lambda step: step.step == 1 and is_back.wait(60)))
        exchange.close()

    def restart_once(step):
        if step.step == 1:
            daemon.process.kill()
            daemon.process.communicate()
            daemon.start()
            is_back.set()

    with (
        Daemon(short_tmp_path, EDGENEWTON_TRAINING__SAVE_EVERY_STEPS="1") as daemon,
        embedded_coordinator() as coordinator,
    ):
        coordinator.create_session("both", SessionSettings(devices=2))
        other = threading.Thread(target=train_other, args=(coordinator.address,))
        other.start()
        asked = request(coordinator, "both", 6, data=replace(DATA, count=2))
        with DaemonClient(daemon.socket, return_deadline_s=60) as client:
            report, _ = client.train(asked, restart_once)
        other.join(60)
    assert report.step == 6
    assert 1 <= report.steps <= 4  # the first two were taken before
    assert report.weights_digest == reports[0].weights_digest


def test_flowers_client_app_asks_the_daemon_and_gets_the_same_as_when_it_trains_itself(daemon):
    there = rounds(context(**{"daemon-socket": str(daemon.socket)}))
    here = rounds(context())
    assert there[1] == here[1]
    assert there[2] == here[2]
    with daemon.client() as client:
        assert client.status().model.step == 5


def test_sigkill_while_it_trains_releases_the_coordinator_and_leaves_the_model(daemon, tmp_path):
    with Coordinator("killed", 1, *IMPATIENT) as coordinator:
        began, ended = threading.Event(), []

        def train():
            try:
                with daemon.client() as client:
                    client.train(request(coordinator, "killed", 100_000), lambda step: began.set())
            except DaemonError as error:
                ended.append(str(error))

        asking = threading.Thread(target=train)
        asking.start()
        assert began.wait(60)
        # Meanwhile it recognises, and takes no second job.
        TASK.save_sample(0, tmp_path / "digit.png")
        content = (tmp_path / "digit.png").read_bytes()
        assert httpx.post(f"http://{daemon.rest}/recognize", content=content).status_code == 200
        with daemon.client() as client:
            assert client.status().training.is_training
            with pytest.raises(DaemonError, match="trains already"):
                client.evaluate(DATA, WEIGHTS)
        daemon.process.kill()
        asking.join(timeout=30)
        assert "gone away" in ended[0]
        assert coordinator.wait() == 1  # the process that trained said good-bye, and the session is over
    daemon.process.communicate()
    daemon.start()
    assert httpx.post(f"http://{daemon.rest}/recognize", content=content).json()["version"] == "1"


def test_a_cancelled_job_ends_and_the_next_one_runs(daemon):
    with Coordinator("cancelled", 1, *IMPATIENT) as coordinator, daemon.client() as client:
        call = client._stub.Train(train_to_proto(request(coordinator, "cancelled", 100_000)))
        assert next(call).HasField("progress")
        call.cancel()
        assert coordinator.wait() == 1
    deadline = time.monotonic() + 30
    with daemon.client() as client:
        while client.status().training.is_training:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        with pytest.raises(DaemonError, match="no coordinator answers at 127.0.0.1:9"):
            client.train(TrainRequest(DATA, "127.0.0.1:9", "s", "d", 0, 1, WEIGHTS))
        with pytest.raises(DaemonError, match="the weights do not fit the model of task 'digits'"):
            client.evaluate(DATA, dump_weights({}))
        with pytest.raises(DaemonError, match="task 'trees' is unknown"):
            client.initial_weights({**DATA.settings, "task": "trees"})


def test_when_the_process_that_trains_dies_the_daemon_says_so_and_takes_another(daemon):
    def kill_trainer(_):
        for children in Path(f"/proc/{daemon.process.pid}/task").glob("*/children"):
            for pid in children.read_text().split():
                os.kill(int(pid), signal.SIGKILL)

    with daemon.client() as client:
        with Coordinator("dies", 1, *IMPATIENT) as coordinator:
            with pytest.raises(DaemonError, match=r"the process that trains has died \(exit status -9\)"):
                client.train(request(coordinator, "dies", 100_000), kill_trainer)
            assert coordinator.wait() == 1
        assert client.initial_weights(DATA.settings) == WEIGHTS
        assert "has died" in client.status().training.last


def test_the_gate_keeps_a_worse_model_from_serving(tmp_path, short_tmp_path):
    trained = Trainer(TrainSettings(steps=30))
    trained.train(30)
    with Daemon(short_tmp_path, EDGENEWTON_MODEL__GATE_MARGIN="0.1") as daemon:
        Artefact.of(TASK, "digits", trained.model, 30).save(tmp_path / "good.pt")
        with Coordinator("worse", 1) as coordinator, daemon.client() as client:
            assert client.promote((tmp_path / "good.pt").read_bytes()) == 2
            client.train(request(coordinator, "worse", 1))
            assert client.status().model.version == 2
        assert daemon.stop() == 0
        assert "the trained model does not serve: its accuracy is" in daemon.log


def test_systemd_hears_that_it_is_ready_alive_and_stopping(short_tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(short_tmp_path / "notify"))
        systemd.settimeout(30)
        environment = {"NOTIFY_SOCKET": str(short_tmp_path / "notify"), "WATCHDOG_USEC": "200000"}
        with Daemon(short_tmp_path, 'log.format = "json"', **environment) as daemon:
            heard = [systemd.recv(1000).decode() for _ in range(3)]
            assert daemon.stop() == 0
        assert "READY=1\nSTATUS=serves recognition" in heard
        assert "WATCHDOG=1" in heard
        systemd.settimeout(0.1)
        try:
            while True:
                heard.append(systemd.recv(1000).decode())
        except TimeoutError:
            assert heard[-1] == "STOPPING=1"
    entries = [json.loads(line) for line in daemon.log.splitlines()]
    assert any(entry["message"].startswith("ready: gRPC on") and entry["level"] == "info" for entry in entries)


def test_a_second_daemon_and_a_wrong_place_are_refused(daemon, short_tmp_path):
    second = run("daemon", "--config", daemon.config)
    assert second.returncode == 1
    assert "is in use by another process" in second.stderr
    with pytest.raises(DaemonError, match="no daemon answers at"):
        DaemonClient(short_tmp_path / "nowhere.sock")
    assert run("status", "--socket", short_tmp_path / "nowhere.sock").returncode == 1
    daemon.process.send_signal(signal.SIGINT)
    assert daemon.process.wait(timeout=30) == 0
