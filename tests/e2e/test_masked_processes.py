"""Sessions under masks with daemons and a coordinator as processes, and certificates; devices and coordinator crash."""

import contextlib
import datetime as dt
import json
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from daemons import TASK, Daemon
from edgenewton.common.identity import Kind
from edgenewton.common.tls import TlsFiles
from processes import Coordinator

from benchmarks.shared.ports import free_port
from coordinator.flower.remote import remote_coordinator
from coordinator.identity.authority import Authority
from coordinator.report.run import read_run
from coordinator.session.settings import SessionSettings
from edge_client.daemon.client import DaemonClient, DaemonError
from edge_client.exchange.remote import GradientExchange
from edge_client.training.jobs import dump_weights, initial_weights
from edge_client.training.settings import TrainSettings
from edge_client.training.trainer import Trainer
from edge_client.training.work import DataRequest, TrainRequest

pytestmark = pytest.mark.processes

DEVICES = 3
SETTINGS = TrainSettings(cadence="every-batch", curvature="eva", batch_size=16, threads=1)
REQUIRED = "secure-aggregation>=2"


class Place:
    """A folder with the certificates of a coordinator, an operator and devices, and what a coordinator leaves."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        authority, day = Authority.create(folder / "ca"), dt.timedelta(days=1)
        authority.issue(Kind.COORDINATOR, "hub", day, hosts=["127.0.0.1"])
        self.operator = TlsFiles.in_folder(authority.issue(Kind.DEVICE, "boss", day, labels=["operator"]))
        self.devices = [authority.issue(Kind.DEVICE, f"d{index}", day) for index in range(DEVICES)]
        self.record, self.audit = folder / "record.sqlite", folder / "audit.jsonl"

    def coordinator(self, *options: str) -> Coordinator:
        """Return one that opens a session under masks."""
        files = (f"--tls={self.folder / 'ca'}", f"--record={self.record}", f"--audit={self.audit}")
        return Coordinator("masked", DEVICES, "--secure-aggregation", f"--port={self.port}", *files, *options)

    def daemon(self, folder: Path, index: int, **environment: str) -> Daemon:
        entries = f'tls = "{self.devices[index]}"\nrequire = ["{REQUIRED}"]'
        folder.mkdir()
        return Daemon(folder, entries, **environment)

    def request(self, session: str, index: int, steps: int) -> TrainRequest:
        data = DataRequest(SETTINGS.flat(), index, DEVICES)
        address = f"127.0.0.1:{self.port}"
        return TrainRequest(data, address, session, "", 0, steps, dump_weights(initial_weights(SETTINGS)))

    def joins(self, session: str, device: str) -> int:
        lines = [json.loads(line) for line in self.audit.read_text().splitlines()]
        of = {"event": "joined", "session": session, "device": device}
        return sum(of.items() <= line.items() for line in lines)


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


def test_daemons_train_in_a_session_under_masks_and_refuse_a_plain_one_by_name(place, short_tmp_path):
    with contextlib.ExitStack() as stack:
        coordinator = stack.enter_context(place.coordinator())
        daemons = [stack.enter_context(place.daemon(short_tmp_path / str(i), i)) for i in range(DEVICES)]
        with remote_coordinator(coordinator.address, place.operator) as operator:
            operator.create_session("plain", SessionSettings(devices=1))
            with daemons[0].client() as client:
                refused = "device 'd0' insists on secure-aggregation, and session 'plain' has no secure aggregation"
                with pytest.raises(DaemonError, match=refused):
                    client.train(place.request("plain", 0, 2))
                assert refused in client.status().training.last
                with pytest.raises(DaemonError, match="its accuracy on its own samples would leave in clear"):
                    client.evaluate(place.request("plain", 0, 2).data, place.request("plain", 0, 2).weights)
        TASK.save_sample(0, place.folder / "digit.png")
        content = (place.folder / "digit.png").read_bytes()
        assert httpx.post(f"http://{daemons[0].rest}/recognize", content=content).json()["version"] == "1"

        def train(index: int):
            with daemons[index].client() as client:
                report, _ = client.train(place.request("masked", index, 8))
                return report, client.status().model.version

        with ThreadPoolExecutor(DEVICES) as pool:
            trained = list(pool.map(train, range(DEVICES)))
        assert coordinator.wait() == 0
    assert "waiting for 3 devices that mask what they send" in coordinator.output
    assert len({report.weights_digest for report, _ in trained}) == 1
    assert [(report.steps, version) for report, version in trained] == [(8, 2)] * DEVICES
    known = read_run(place.record, "masked")
    assert [step.devices for step in known.steps] == [DEVICES] * 8
    assert all(step.loss is not None for step in known.steps)
    assert {(device.loss, device.training_samples) for device in known.devices.values()} == {(None, 0)}


def kill_9(daemon: Daemon) -> None:
    """Kill a daemon, and before it the process that trains, so that it cannot say good-bye."""
    for children in Path(f"/proc/{daemon.process.pid}/task").glob("*/children"):
        for pid in children.read_text().split():
            os.kill(int(pid), signal.SIGKILL)
    daemon.process.kill()
    daemon.process.communicate()


def test_a_daemon_and_then_the_coordinator_are_killed_and_all_end_with_one_model(place, short_tmp_path):
    """The daemon loses all that it knew, and takes over another device's state, which the coordinator cannot read."""
    steps, crash_at, restart_at = 40, 5, 25
    is_back, running = threading.Event(), contextlib.ExitStack()
    options = ("--quorum=2", "--replay-bytes=0", "--heartbeat-s=0.5", "--lease-s=2")

    def other(index: int) -> Trainer:
        files = TlsFiles.in_folder(place.devices[index])
        exchange = GradientExchange.connect(
            f"127.0.0.1:{place.port}", session="masked", device=f"d{index}", tls=files, require=[REQUIRED]
        )
        return Trainer(SETTINGS, index, DEVICES, exchange)

    def after(step) -> None:
        if step.step == crash_at + 1:
            assert is_back.wait(120)

    def restart(step) -> None:
        after(step)
        if step.step == restart_at:
            coordinators[-1].process.kill()
            assert coordinators[-1].wait() == -signal.SIGKILL
            coordinators.append(running.enter_context(place.coordinator("--resume", *options)))

    def crash(step) -> None:
        if step.step == crash_at and not is_back.is_set():
            kill_9(daemon)
            daemon.start()
            threading.Thread(target=await_return).start()

    def await_return() -> None:
        deadline = time.monotonic() + 120
        while place.joins("masked", "d0") < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        is_back.set()

    def train_daemon():
        with DaemonClient(daemon.socket, return_deadline_s=60) as client:
            return client.train(place.request("masked", 0, steps), crash)[0]

    def train_other(trainer: Trainer, on_step):
        report = trainer.train(steps, on_step)
        trainer.exchange.close()
        return report

    with running:
        coordinators = [running.enter_context(place.coordinator(*options))]
        daemon = running.enter_context(
            place.daemon(short_tmp_path / "d0", 0, EDGENEWTON_TRAINING__SAVE_EVERY_STEPS="0")
        )
        others = [other(1), other(2)]
        pool = running.enter_context(ThreadPoolExecutor(DEVICES))
        ends = [pool.submit(train_daemon)]
        ends += [pool.submit(train_other, *each) for each in zip(others, (after, restart), strict=True)]
        reports = [end.result(150) for end in ends]
        assert coordinators[-1].wait() == 0
    assert len({report.weights_digest for report in reports}) == 1
    assert [report.step for report in reports] == [steps] * DEVICES
    assert len(coordinators) == 2
    assert "resumed at step 2" in coordinators[1].output
    known = read_run(place.record, "masked")
    assert [step.step for step in known.steps] == list(range(steps))
    assert "device 'd0' heals: its state is not the session's" in coordinators[0].output
    assert 2 in {step.devices for step in known.steps if step.step > crash_at}
    assert DEVICES in {step.devices for step in known.steps if step.step > crash_at + 1}
    assert known.last_loss < known.steps[0].loss / 2
