"""The page's server, with the protocol's own stubs as devices: what it answers, to whom; and the exchange goes on."""

import json
import socket
import time

import grpc
import httpx
import pytest
from bare_client import SPEC, Device, gradient_frame, join_request, refused
from edgenewton.common.addresses import is_loopback
from edgenewton.v1 import exchange_pb2 as pb
from edgenewton.v1 import exchange_pb2_grpc
from edgenewton.v1.codecs import CodecChoice
from edgenewton.v1.framing import FramePacker, Layout
from served import Served

from coordinator.dashboard import feed


@pytest.fixture
def served():
    served = Served()
    yield served
    served.stop()


@pytest.fixture
def stub(served):
    with grpc.insecure_channel(served.server.address) as channel:
        yield exchange_pb2_grpc.GradientExchangeStub(channel)


def events(lines):
    """Yield the server-sent events in lines, as their names and data."""
    name = ""
    for line in lines:
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield name, json.loads(line.removeprefix("data: "))


def train(devices, steps):
    for step in steps:
        for device in devices:
            device.send_gradient(step, 1.0, samples=4)
        for device in devices:
            next(device.stream)


@pytest.mark.parametrize(
    "path",
    ["/", "/static/page.js", "/static/style.css", "/api/state", "/metrics", "/health", "/nowhere", "/static/../app.py"],
)
def test_every_answer_lets_a_browser_do_nothing_but_show_the_page(served, path):
    answer = httpx.get(served.url + path)
    assert answer.status_code == (404 if path in ("/nowhere", "/static/../app.py") else 200)
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self'" in policy
    assert "unsafe" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["x-frame-options"] == "DENY"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert "server" not in answer.headers


def test_the_page_asks_for_nothing_from_elsewhere(served):
    for name in ("", "static/page.js", "static/chart.js", "static/scale.js", "static/format.js", "static/style.css"):
        text = httpx.get(f"{served.url}/{name}").text.replace("http://www.w3.org/2000/svg", "")
        assert "//" not in text.replace("// ", "").replace("//\n", "")  # comments aside, no address
        assert "innerHTML" not in text
        assert "<style" not in text
        assert "style=" not in text


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_nothing_can_be_changed(served, method):
    for path in ("/", "/api/state", "/api/events", "/metrics"):
        assert httpx.request(method, served.url + path).status_code == 405


def test_a_name_that_leads_to_loopback_from_elsewhere_is_refused(served):
    answer = httpx.get(f"{served.url}/api/state", headers={"Host": "evil.example"})
    assert answer.status_code == 421
    assert "sessions" not in answer.text
    port = served.url.rpartition(":")[2]
    for host in (f"localhost:{port}", f"[::1]:{port}", "127.0.0.1"):
        assert httpx.get(f"{served.url}/api/state", headers={"Host": host}).status_code == 200
    assert is_loopback("::1")
    assert not is_loopback("0.0.0.0")


def test_state_and_metrics_are_those_of_the_devices(served, stub):
    served.create(devices=2, codec="fp32")
    a, b = Device(stub, "a"), Device(stub, "b")
    train((a, b), range(3))
    session = served.session()
    assert (session["phase"], session["step"], session["steps"], session["members"]) == ("training", 2, 3, 2)
    assert session["samples"] == 24
    assert [point[0] for point in session["curves"]["loss"]] == [0, 1, 2]
    assert [(d["device"], d["state"], d["batches"]) for d in session["devices"]] == [
        ("a", "active", 3),
        ("b", "active", 3),
    ]
    assert session["received"] == sum(device["received"] for device in session["devices"]) > 0

    of = ("session", "s")
    metrics = served.metrics()
    assert metrics["edgenewton_coordinator_steps_total", of] == 3
    assert metrics["edgenewton_coordinator_step_seconds_count", of] == 3
    assert metrics["edgenewton_coordinator_step_seconds_bucket", ("le", "+Inf"), of] == 3
    assert metrics["edgenewton_coordinator_devices", of, ("standing", "active")] == 2
    assert metrics["edgenewton_coordinator_loss", of] == 1.0
    assert metrics["edgenewton_coordinator_phase", ("phase", "training"), of] == 1
    codec = ("codec", "fp32")
    assert metrics["edgenewton_coordinator_bytes_total", codec, ("direction", "received"), of] == session["received"]
    assert metrics["edgenewton_coordinator_device_bytes_total", ("device", "a"), ("direction", "received"), of] > 0


def test_the_mode_and_what_was_spent_of_a_privacy_budget_are_shown(served, stub):
    served.create("plain", devices=1, codec="fp32")
    served.create(devices=1, codec="fp32")
    options = {"privacy_epsilon": "4.0", "privacy_delta": "1e-05"}
    device = Device(stub, "a", options=options)
    device.send(gradient_frame(0, 1.0, epsilon=1.5))
    next(device.stream)
    session = served.session()
    assert session["privacy"] == {
        "mode": "privacy budget",
        "least_in_sum": None,
        "epsilon": 1.5,
        "budget": {"epsilon": 4.0, "delta": 1e-5, "unit": "device"},
        "text": "privacy budget: epsilon 1.5 of 4 spent at delta 1e-05, for each device's whole data; not masked: the "
        "coordinator is trusted, it sees more",
    }
    assert session["devices"][0]["epsilon"] == 1.5
    assert served.session("plain")["privacy"]["text"] == "plain: the coordinator sees what each device sends"
    metrics = served.metrics()
    names = ("epsilon", "epsilon_budget", "delta")
    assert [metrics[f"edgenewton_coordinator_{name}", ("session", "s")] for name in names] == [1.5, 4.0, 1e-5]
    assert ("edgenewton_coordinator_epsilon", ("session", "plain")) not in metrics


@pytest.mark.parametrize("epsilon", [-1.0, float("nan"), 1e13])
def test_no_epsilon_that_cannot_be_is_taken(served, stub, epsilon):
    served.create(devices=1, codec="fp32")
    device = Device(stub, "a")
    device.send(gradient_frame(0, 1.0, epsilon=epsilon))
    assert "epsilon" in device.error().details()


def test_how_far_the_run_is_is_told_as_the_devices_say_it(served, stub):
    served.create(devices=2, codec="fp32")
    a = Device(stub, "a", options={"averaging": "0.97"}, run_steps=200)
    b = Device(stub, "b", options={"averaging": "0.97"})
    of = ("session", "s")
    assert (served.session()["done"], served.session()["run_steps"], served.session()["best"]) == (0, 200, None)
    evaluation = pb.Evaluation(correct=3, samples=4)
    a.send(gradient_frame(0, 1.0, 4, evaluation=evaluation))
    b.send_gradient(0, 1.0, samples=4)
    next(a.stream)
    train((a, b), [1])
    session = served.session()
    assert (session["done"], session["run_steps"], session["best"], session["averages"]) == (2, 200, [0, 0.75], True)
    assert session["batches_per_s"] is None  # two steps say nothing yet
    assert session["left_s"] is None
    assert served.metrics()["edgenewton_coordinator_run_steps", of] == 200
    assert served.metrics()["edgenewton_coordinator_best_accuracy", of] == 0.75
    assert served.metrics()["edgenewton_coordinator_batches_per_second", of] == 0


@pytest.mark.parametrize("steps", [0, 2**63])
def test_a_length_that_no_run_has_is_refused(served, stub, steps):
    served.create(devices=2)
    code, details = refused(lambda: stub.Join(join_request("a", run_steps=steps)))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert f"device 'a': run_steps is {steps}; it may be 1 to 1000000000000" in details


def test_whoever_is_waited_for_is_told(served, stub):
    served.create(devices=3, codec="fp32")
    assert served.session()["wait"] == {"devices": [], "more": 3, "since": None}
    a, b, c = (Device(stub, name) for name in "abc")
    train((a, b, c), range(2))
    for device in (a, c):
        device.send_gradient(2, 1.0, samples=4)
    deadline = time.monotonic() + 20
    while (session := served.session())["wait"] is None or session["wait"]["devices"] != ["b"]:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    told = {device["device"]: device["awaited_since"] for device in session["devices"]}
    assert told == {"a": None, "b": session["wait"]["since"], "c": None}
    awaited = {
        name: served.metrics()["edgenewton_coordinator_device_awaited_seconds", ("device", name), ("session", "s")]
        for name in "ab"
    }
    assert awaited["a"] == 0
    assert awaited["b"] >= 1
    b.send_gradient(2, 1.0, samples=4)
    next(b.stream)
    assert served.session()["wait"] is None


def test_the_form_of_moves_is_shown_once_it_is_chosen(served, stub):
    served.create(devices=1)
    train((Device(stub, "a"),), range(1))
    assert served.session()["form"] == ""
    assert not any(name == "edgenewton_coordinator_move_form" for name, *_ in served.metrics())
    served.server.directory.find("s").chronicle.statistics.form = "sparse1"
    assert served.session()["form"] == "sparse1"
    metrics, of = served.metrics(), ("session", "s")
    told = {form: metrics["edgenewton_coordinator_move_form", ("form", form), of] for form in ("int4", "sparse1")}
    assert told == {"int4": 0, "sparse1": 1}


def test_skipped_batches_are_counted(served, stub):
    served.create(devices=2)
    a, b = Device(stub, "a"), Device(stub, "b")
    train((a, b), range(1))
    for step in (1, 2):
        a.send(gradient_frame(step, 0.0, samples=0, skipped=True))
        b.send_gradient(step, 1.0, samples=4)
        for device in (a, b):
            next(device.stream)
    session = served.session()
    assert (session["steps"], session["samples"], session["skipped"]) == (3, 16, 2)
    assert [(d["batches"], d["skipped"], d["loss"]) for d in session["devices"]] == [(1, 2, 1.0), (3, 0, 1.0)]
    assert session["devices"][0]["last_error"] == "skipped its batch of step 2: it could not be used"
    assert served.metrics()["edgenewton_coordinator_skipped_total", ("session", "s")] == 2


def test_what_the_codec_saves_is_what_float32_would_take_more(served, stub):
    """The only tensor has six elements, which bf16 writes in 12 bytes where float32 takes 24."""
    served.create(devices=1, codec="bf16")
    device = Device(stub, "a")
    packer = FramePacker(0, 1, 1 << 20)
    (piece,) = Layout((SPEC,), CodecChoice("bf16").policy(), 1 << 20).slices(0)
    assert not list(packer.add(piece, bytes(12)))
    device.send(pb.Frame.FromString(packer.take(pb.Frame(contribution=pb.Contribution(loss=1.0)))))
    next(device.stream)
    device.end()
    stub.Leave(pb.LeaveRequest(session="s", device="a", token=device.reply.token, finished=True))
    assert served.session()["saved"] == 2 * 12  # up and down


def test_refusals_are_counted_and_shown_but_hide_nothing(served, stub):
    served.create(devices=2)
    Device(stub, "a")
    for number in range(60):
        refused(lambda name=f"b{number}": stub.Join(join_request(name, version=9), timeout=5))
    refused(lambda: stub.Join(join_request("c", session="other"), timeout=5))
    session = served.session()
    assert session["refusals"] == {"FAILED_PRECONDITION": 60}
    kinds = [incident["kind"] for incident in session["incidents"]]
    assert kinds.count("refused") < 50
    metrics = served.metrics()
    assert metrics["edgenewton_coordinator_refusals_total", ("status", "FAILED_PRECONDITION")] == 60
    assert metrics["edgenewton_coordinator_refusals_total", ("status", "NOT_FOUND")] == 1


def test_the_feed_tells_everything_and_then_what_is_new(served, stub):
    served.create(devices=1)
    device = Device(stub, "a")
    train((device,), range(2))
    with httpx.stream("GET", f"{served.url}/api/events", timeout=20) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        told = events(answer.iter_lines())
        name, data = next(told)
        assert name == "everything"
        assert [point[0] for point in data["sessions"][0]["curves"]["loss"]] == [0, 1]
        train((device,), range(2, 5))
        points = []
        for name, data in told:
            assert name == "update"
            points += [point[0] for point in data["sessions"][0]["curves"]["loss"]]
            if 4 in points:
                break
        assert sorted(set(points)) in ([0, 1, 2, 3, 4], [2, 3, 4])


def test_too_many_viewers_are_told_so_and_leave_no_trace(served, monkeypatch):
    monkeypatch.setattr(feed, "MAX_VIEWERS", 1)
    with httpx.stream("GET", f"{served.url}/api/events", timeout=20) as answer:
        lines = answer.iter_lines()  # kept: its end would close the stream
        next(lines)
        refusal = httpx.get(f"{served.url}/api/events")
        assert refusal.status_code == 503
        assert "1 viewers are connected already" in refusal.json()["error"]
    deadline = time.monotonic() + 20
    while True:
        with httpx.stream("GET", f"{served.url}/api/events", timeout=20) as again:
            if again.status_code == 200:
                break
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_viewer_that_never_reads_stops_nobody(served, stub):
    served.create(devices=1)
    device = Device(stub, "a")
    host, port = served.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as deaf:
        deaf.sendall(b"GET /api/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        train((device,), range(50))
        assert served.session()["steps"] == 50


def test_an_error_in_the_statistics_stops_nobody(served, stub, monkeypatch):
    def fail(*arguments):
        raise RuntimeError("on purpose")

    monkeypatch.setattr("coordinator.telemetry.statistics.SessionStatistics._apply_report", fail)
    served.create(devices=1)
    train((Device(stub, "a"),), range(3))


def test_what_a_device_says_comes_as_it_is_for_the_page_to_show_as_text(served, stub):
    name = '<img src=x onerror=alert(1)>"\\'
    served.create(devices=1)
    Device(stub, name)
    assert served.session()["devices"][0]["device"] == name
    labels = ("edgenewton_coordinator_device_lag_seconds", ("device", name), ("session", "s"))
    assert labels in served.metrics()
