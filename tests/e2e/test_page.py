"""What people look at, of a real coordinator with real devices: page, feed, metrics, TensorBoard, report."""

import contextlib
import json
import re
import signal
import subprocess
from pathlib import Path

import grpc
import httpx
import pytest
from bare_client import Device
from browser import NEEDS_CHROMIUM, chromium, screenshot
from edgenewton.common.progress import duration_text, rate_text
from edgenewton.v1 import exchange_pb2 as pb
from edgenewton.v1 import exchange_pb2_grpc
from looks import faults
from processes import Coordinator, running
from prometheus_client.parser import text_string_to_metric_families
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from typer.testing import CliRunner

from coordinator.cli.commands import app
from coordinator.report.run import read_run

pytestmark = pytest.mark.processes

DEVICES = 3
STEPS = 40
EVERY = 5


class Training:
    """A session of which everything is looked at, first while it is on and then when it is over."""

    def __init__(self, folder: Path, codec: str = "int8") -> None:
        self.folder = folder
        self.record = folder / "record.sqlite"
        options = f"--codec={codec} --join-deadline-s=170 --page-port=0 --record={self.record}"
        self._coordinator = Coordinator("leaves", DEVICES, *options.split(), f"--tensorboard={folder / 'events'}")
        self._coordinator._arguments.remove("--once")
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "Training":
        self._stack.__enter__()
        self.coordinator = self._stack.enter_context(self._coordinator)
        self.url = re.search(r"page and metrics are at (\S+)/", self.coordinator.output)[1]
        self.address = self.coordinator.address
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.__exit__(*error)

    def start_devices(self) -> None:
        self.clients = []
        for index in range(DEVICES):
            place = f"--session leaves --device gateway-{index} --index {index} --count {DEVICES}"
            settings = f"-c steps={STEPS} -c evaluate-every={EVERY} -c threads=1 -c cadence=every-batch"
            arguments = ("train", "--coordinator", self.address, *place.split(), *settings.split())
            self.clients.append(self._stack.enter_context(running(*arguments)))

    def wait_for_devices(self) -> None:
        for client in self.clients:
            output, _ = client.communicate(timeout=170)
            assert client.returncode == 0, output

    def session(self) -> dict:
        (session,) = httpx.get(f"{self.url}/api/state").json()["sessions"]
        return session

    def refuse_one(self) -> None:
        """Let a device be refused whose name and version a page must not take for markup."""
        with grpc.insecure_channel(self.address) as channel:
            stub = exchange_pb2_grpc.GradientExchangeStub(channel)
            request = pb.JoinRequest(protocol_version=9, session="leaves", device="<b id=evil>x</b>")
            with pytest.raises(grpc.RpcError):
                stub.Join(request, timeout=10)


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    """A training that is over, after its feed was followed from the beginning."""
    with Training(tmp_path_factory.mktemp("page")) as training:
        training.start_devices()
        training.refuse_one()
        training.told = follow(training.url, training.clients[1])
        training.wait_for_devices()
        yield training


def follow(url: str, stopped: subprocess.Popen) -> list[tuple[str, dict]]:
    """Return what the feed told until the session was over; a device is stopped until it is told of."""
    told, name = [], ""
    is_stopped = False
    with httpx.stream("GET", f"{url}/api/events", timeout=170) as answer:
        for line in answer.iter_lines():
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: "):
                told.append((name, json.loads(line.removeprefix("data: "))))
                session = told[-1][1]["sessions"][0]
                if not is_stopped and session["steps"] > 0:
                    is_stopped = True
                    stopped.send_signal(signal.SIGSTOP)
                elif is_stopped and session["wait"] is not None:
                    stopped.send_signal(signal.SIGCONT)
                if told[-1][1]["sessions"][0]["phase"] == "ended":
                    return told
    raise AssertionError("the feed ended before the session")


def test_the_feed_showed_the_training_as_it_happened(training):
    phases = [data["sessions"][0]["phase"] for _, data in training.told]
    assert training.told[0][0] == "everything"
    assert phases[-1] == "ended"
    assert "gathering" in phases
    steps = {step for _, data in training.told for step, _ in data["sessions"][0]["curves"]["loss"]}
    assert steps == set(range(STEPS))
    states = {device["state"] for _, data in training.told for device in data["sessions"][0]["devices"]}
    assert {"active", "finished"} <= states


def test_a_device_that_stops_is_told_to_be_waited_for(training):
    """Its state is not that of one that goes on, and it is named."""
    waits = [data["sessions"][0] for _, data in training.told if data["sessions"][0]["wait"] is not None]
    stopped = [session for session in waits if session["wait"]["devices"] == ["gateway-1"] and session["steps"] > 0]
    assert stopped
    for session in stopped:
        since = {device["device"]: device["awaited_since"] for device in session["devices"]}
        assert since == {"gateway-0": None, "gateway-1": session["wait"]["since"], "gateway-2": None}


def test_the_state_is_that_of_the_devices(training):
    session = training.session()
    assert (session["steps"], session["step"], session["codec"]) == (STEPS, STEPS - 1, "int8")
    assert [step for step, _ in session["curves"]["accuracy"]] == list(range(0, STEPS, EVERY))
    assert session["accuracy"] > 0.8
    assert session["saved"] > session["received"]  # int8 takes less than half of float32
    for device in session["devices"]:
        assert device["batches"] == STEPS
        assert device["software"].startswith("edgenewton ")
        assert device["last_error"] == ""


def test_metrics_are_what_prometheus_reads(training):
    families = {f.name: f for f in text_string_to_metric_families(httpx.get(f"{training.url}/metrics").text)}
    samples = {s.name: s.value for s in families["edgenewton_coordinator_steps"].samples}
    assert samples["edgenewton_coordinator_steps_total"] == STEPS
    histogram = families["edgenewton_coordinator_step_seconds"]
    assert histogram.type == "histogram"
    counts = [s.value for s in histogram.samples if s.name.endswith("_bucket")]
    assert counts == sorted(counts)
    assert counts[-1] == STEPS
    session = training.session()
    assert [s.value for s in families["edgenewton_coordinator_run_steps"].samples] == [STEPS]
    assert [s.value for s in families["edgenewton_coordinator_best_accuracy"].samples] == [session["best"][1]]
    exchanged = {s.labels["direction"]: s for s in families["edgenewton_coordinator_bytes"].samples}
    assert exchanged["received"].value == session["received"]
    assert exchanged["sent"].labels["codec"] == "int8"
    refused = {s.labels["status"]: s.value for s in families["edgenewton_coordinator_refusals"].samples}
    assert refused["FAILED_PRECONDITION"] == 1
    assert "process_resident_memory_bytes" in families


def test_the_terminal_shows_the_same(training):
    text = CliRunner(env={"COLUMNS": "140"}).invoke(app, ["watch", training.address, "--session", "leaves"]).stdout
    assert f"leaves: ended  step {STEPS - 1}" in text
    assert f"step {STEPS} of {STEPS}, best accuracy" in text
    assert [f"gateway-{index}" in text for index in range(DEVICES)] == [True] * DEVICES


@NEEDS_CHROMIUM
def test_a_person_sees_what_happens_as_it_happens(tmp_path):
    """With bare clients as devices, which do what the test tells them to."""
    names = ["<i id=evil>", "gateway-1", "gateway-2"]
    with Training(tmp_path, codec="fp32") as training, chromium() as browser:
        page = browser.open(training.url, "desktop")
        page.wait_for_selector("text=No device has joined yet.")
        with grpc.insecure_channel(training.address) as channel:
            devices = [
                Device(exchange_pb2_grpc.GradientExchangeStub(channel), name, session="leaves", run_steps=3000)
                for name in names
            ]
            for device in devices:
                device.beat(1.0)
            for step in range(3):
                for device in devices:
                    device.send_gradient(step, 1.0 / (step + 1), samples=8)
                for device in devices:
                    while not next(device.stream).HasField("commit"):  # it may be an answer to a heartbeat
                        pass
            page.wait_for_selector("#phase.training")
            page.wait_for_function("() => document.querySelector('#step').textContent === '3'")
            assert page.locator("#devices .state.active").count() == 3
            assert page.inner_text("#loss") == "0.333"
            assert page.inner_text("#live") == "live"
            assert page.inner_text("#reason") == "step 3 of 3,000"  # so soon nobody knows how long they take
            assert page.inner_text("#done") == "of 3,000"
            for value in (0.02, 0.25, 7.14, 40, 99.6, 3_000, 7_300, 300_000):
                shown = page.evaluate("v => import('/static/format.js').then(f => [f.duration(v), f.rate(v)])", value)
                assert shown == [duration_text(value), rate_text(value).replace(",", "")]
            shown = page.locator("#devices tr td:first-child span").all_inner_texts()
            assert sorted(shown) == names
            assert page.locator("#evil").count() == 0  # what a device said is text
            screenshot(page, "page-live")

            stub = exchange_pb2_grpc.GradientExchangeStub(channel)
            stub.Leave(pb.LeaveRequest(session="leaves", device=names[1], token=devices[1].reply.token, reason="tired"))
            page.wait_for_selector("text=gateway-1 left: tired")
            assert page.locator("#devices .state.gone").count() == 1

            training.coordinator.process.send_signal(signal.SIGTERM)
            page.wait_for_selector("#live.off")  # it says so when the coordinator is gone
        assert training.coordinator.process.wait(30) == 0


@NEEDS_CHROMIUM
def test_a_person_sees_a_training_of_real_devices(training):
    with chromium() as browser:
        page = browser.open(training.url, "desktop")
        page.wait_for_selector("#phase.ended")
        assert page.inner_text("#step") == str(STEPS)
        assert page.inner_text("#done") == f"of {STEPS}"
        assert page.locator("#wait").is_hidden()
        assert "at step" in page.inner_text("#best")
        assert "%" in page.inner_text("#accuracy")
        assert "times smaller" in page.inner_text("#codec")
        assert page.locator("svg.chart .line").count() == 5
        shown = page.locator("#devices tr td:first-child span").all_inner_texts()
        assert sorted(shown) == [f"gateway-{index}" for index in range(DEVICES)]
        assert page.locator("#evil").count() == 0
        assert "<b id=evil>x</b> was refused" in page.inner_text("#incidents")

        # The value under the pointer.
        chart = page.locator("#chart-loss svg").bounding_box()
        page.mouse.move(chart["x"] + chart["width"] / 2, chart["y"] + chart["height"] / 2)
        page.wait_for_function("() => document.querySelector('#chart-loss output').textContent.startsWith('step ')")
        page.mouse.move(0, 0)
        screenshot(page, "page-desktop")
        screenshot(browser.open(training.url, "desktop", "dark"), "page-dark")

        phone = browser.open(training.url, "phone")
        phone.wait_for_selector("#devices tr:nth-child(3)")
        assert faults(phone) == []
        screenshot(phone, "page-phone")

        assert browser.problems == []
        assert {url.split("/")[2] for url in browser.requests} == {training.url.split("/")[2]}


# The tests below stop the coordinator that those above look at.


def test_tensorboard_reads_the_files(training):
    training.coordinator.process.send_signal(signal.SIGTERM)
    assert training.coordinator.process.wait(30) == 0
    events = EventAccumulator(str(training.folder / "events" / "leaves")).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == list(range(STEPS))
    accuracy = events.Scalars("held out/accuracy")
    assert [event.step for event in accuracy] == list(range(0, STEPS, EVERY))
    assert accuracy[-1].value > 0.8
    assert events.Scalars("wire/bytes saved by the codec")[-1].value > 0


def test_the_report_refers_to_nothing_outside_it(training, tmp_path):
    result = CliRunner().invoke(app, ["report", str(training.record), "--output", str(tmp_path / "report.html")])
    assert result.exit_code == 0, result.output
    page = (tmp_path / "report.html").read_text()
    references = re.findall(r'(?:src|href|action|data)\s*=\s*"([^"]*)"|url\(([^)]*)\)|@import', page)
    assert all(target.startswith("#") for pair in references for target in pair if target)
    for address in re.findall(r"\w+://[^\"'\s<]*", page):
        assert address in ("http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink")  # names, not addresses
    assert "<script" not in page
    assert page.count("<svg") == 4
    assert "<b id=evil>" not in page
    assert "&lt;b id=evil&gt;x&lt;/b&gt;" in page
    assert [f"gateway-{index}" in page for index in range(DEVICES)] == [True] * DEVICES
    run = read_run(training.record)
    assert (run.committed, run.phase, run.refusals) == (STEPS, "ended", {"FAILED_PRECONDITION": 1})
    assert [step.step for step in run.steps] == list(range(STEPS))
    assert run.samples == sum(step.samples for step in run.steps)


@NEEDS_CHROMIUM
def test_a_person_sees_the_report_in_a_browser(training, tmp_path):
    path = tmp_path / "report.html"
    assert CliRunner().invoke(app, ["report", str(training.record), "-o", str(path)]).exit_code == 0
    with chromium() as browser:
        page = browser.open(path.as_uri(), "desktop")
        assert page.locator(".plots svg").count() == 4
        for box in page.locator(".plots svg").all():
            assert box.bounding_box()["width"] > 300
        assert faults(page) == []
        screenshot(page, "report")
        phone = browser.open(path.as_uri(), "phone")
        assert faults(phone) == []
        screenshot(phone, "report-phone")
        assert browser.problems == []


def test_a_report_on_nothing_says_what_it_wants(tmp_path):
    for run, words in [
        (tmp_path / "none", "does not exist; name a coordinator's record or a Flower run's output folder"),
        (tmp_path, "has neither history.json nor record.sqlite"),
    ]:
        result = CliRunner().invoke(app, ["report", str(run)])
        assert result.exit_code == 1
        assert words in " ".join(result.stderr.split())


def test_a_port_of_the_page_that_is_in_use_is_named(tmp_path):
    with Training(tmp_path) as other:
        port = other.url.rpartition(":")[2]
        result = CliRunner().invoke(app, ["serve", "--port", "0", "--page-port", port])
    assert result.exit_code == 1
    assert f"cannot listen on 127.0.0.1:{port} for the page" in " ".join(result.stderr.split())
