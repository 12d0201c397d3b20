"""What a person sees on the page, in a browser: on a desk and on a phone, with few devices and many."""

import io

import grpc
import numpy as np
import pytest
from bare_client import Device, gradient_frame
from browser import NEEDS_CHROMIUM, chromium, screenshot
from edgenewton.v1 import exchange_pb2_grpc
from looks import faults
from PIL import Image
from served import Served

pytestmark = NEEDS_CHROMIUM

STEPS = 30


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture
def look(browser, fleet):
    """Opens the page, and closes it after the test, in which nothing may have gone wrong in it."""
    pages = []

    def look(size="desktop", scheme="light"):
        pages.append(browser.open(fleet.url, size, scheme))
        return pages[-1]

    yield look
    assert browser.problems == []
    for page in pages:
        page.context.close()


class Fleet:
    """Devices that have trained, each step with half the loss; in the next step all but some have done their part.

    Their names differ at the end, and two in the middle only.
    """

    def __init__(self, stub, count, **options):
        names = [f"plant-munich-hall-7-line-12-gateway-{number:05}" for number in range(count)]
        if count > 2:
            names[-2:] = [f"sensor-of-the-line-{kind}-in-the-north-hall-1" for kind in ("up", "down")]
        self.devices = [Device(stub, name, run_steps=3000, **options) for name in names]
        for device in self.devices:
            device.beat(1.0)
        for step in range(STEPS):
            self.contribute(step)

    def contribute(self, step, awaited=()):
        for device in self.devices:
            if device.name not in awaited:
                device.send_gradient(step, 2.0 * 0.5**step, samples=32)
        for device in () if awaited else self.devices:
            while not next(device.stream).HasField("commit"):
                pass


@pytest.fixture(scope="module", params=[1, 4, 40])
def fleet(request):
    served = Served()
    served.create("leaves", devices=request.param, codec="fp32")
    with grpc.insecure_channel(served.server.address) as channel:
        fleet = Fleet(exchange_pb2_grpc.GradientExchangeStub(channel), request.param, session="leaves")
        fleet.url = served.url
        yield fleet
    served.stop()


@pytest.mark.parametrize(("size", "scheme"), [("desktop", "light"), ("phone", "dark")])
def test_everything_has_its_place(look, fleet, size, scheme):
    page = look(size, scheme)
    page.wait_for_function("() => document.querySelector('#step').textContent === '30'")
    page.wait_for_selector("#chart-loss .line")
    assert page.inner_text("#reason").startswith("step 30 of 3,000")
    assert page.inner_text("#done").startswith("of 3,000")
    assert page.inner_text("#privacy") == "plain: the coordinator sees what each device sends"
    assert faults(page) == []
    screenshot(page, f"fleet-{len(fleet.devices)}-{size}")
    # Values under the pointer need room, too.
    for chart in page.locator("svg.chart").all():
        chart.hover()
        assert faults(page) == []
    page.locator("summary").click()
    assert faults(page) == []


@pytest.mark.parametrize("fleet", [4], indirect=True)
def test_names_are_short_and_tell_devices_apart(look, fleet):
    page = look("phone")
    page.wait_for_selector("#devices tr")
    cells = page.locator("#devices tr td:first-child span").all()
    shown = {cell.inner_text(): cell.get_attribute("title") for cell in cells}
    assert sorted(shown.values()) == sorted(device.name for device in fleet.devices)
    assert shown["plant-munic…ateway-00000"] == fleet.devices[0].name
    whole = [name for name, title in shown.items() if name == title]
    assert len(whole) == 2
    assert all(len(name) == 24 for name in shown if name not in whole)


@pytest.mark.parametrize("fleet", [4], indirect=True)
def test_losses_that_span_decades_are_on_a_scale_of_powers(look, fleet):
    page = look()
    page.wait_for_selector("#chart-loss .line")
    ticks = page.locator("#chart-loss text[text-anchor=end]").all_text_contents()
    assert {"1", "0.01", "1e-4", "1e-6"} <= set(ticks)
    assert page.locator("#chart-loss .scale").is_visible()


@pytest.mark.parametrize("fleet", [4], indirect=True)
def test_curves_that_coincide_are_both_seen(look, fleet):
    page = look()
    page.wait_for_selector("#chart-bytes .line.b")
    a, b = (page.locator(f"#chart-bytes .line.{name}").get_attribute("d") for name in "ab")
    assert a == b  # in fp32 nothing is saved
    picture = np.asarray(Image.open(io.BytesIO(page.locator("#chart-bytes svg").screenshot())).convert("RGB"), int)
    seen = [(np.abs(picture - colour).sum(2) < 12).sum() for colour in ((0x0F, 0x76, 0x6E), (0xB4, 0x53, 0x09))]
    assert min(seen) > 200


@pytest.mark.parametrize("fleet", [40], indirect=True)
def test_whom_the_others_wait_for_is_named_at_once(look, fleet):
    """The last of the tests: the devices are in the midst of a step after it."""
    late = fleet.devices[0].name
    page = look("phone")
    page.wait_for_selector("#devices .state.active")
    fleet.contribute(STEPS, awaited=[late])
    page.wait_for_selector("#wait")
    page.wait_for_function(
        "() => document.querySelectorAll('.state.awaited').length === 1"
    )  # the others' news may take time
    words = page.inner_text("#wait").split()
    assert (words[0], words[2:4]) == ("waits", ["s", "for"])
    assert int(words[1]) >= 1
    short = page.locator(f"#devices span[title='{late}']").inner_text()
    assert words[4:] == [short]
    assert page.get_attribute("#wait", "title") == late
    row = page.locator(f"#devices tr:has(span[title='{late}'])")
    assert row.locator(".state.awaited").inner_text() == "waited for"
    assert page.inner_text("#reason") == "step 30 of 3,000"
    assert faults(page) == []
    screenshot(page, f"waits-{len(fleet.devices)}")
    fleet.devices[0].send_gradient(STEPS, 0.1, samples=32)
    page.wait_for_selector("#wait", state="hidden")


@pytest.mark.parametrize("fleet", [1], indirect=True)
def test_scales_have_round_marks(look, fleet):
    page = look()
    for call, marks in [
        ("linear([0, 2.3], 2.3)", [0, 1, 2, 3]),
        ("linear([1, 100], 100)", [0, 50, 100]),
        ("linear([-3, 1], 1)", [-3, -2, -1, 0, 1]),
        ("linear([0], 1)", [0, 0.5, 1]),
        ("logarithmic([3, 0.02, 0])", [0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5]),
        ("logarithmic([3, 2e-5])", [1e-4, 1e-3, 1e-2, 0.1, 1]),
        ("logarithmic([1, 1e-12])", [1e-12, 1e-10, 1e-8, 1e-6, 1e-4, 1e-2, 1]),
    ]:
        assert page.evaluate(f"import('/static/scale.js').then(s => s.{call}.ticks)") == pytest.approx(marks), call
    for values, is_log in [([2, 0.05], True), ([2, 0.2], False), ([2, 0.05, -1], False), ([2, 0], False), ([], False)]:
        assert page.evaluate("v => import('/static/scale.js').then(s => s.spansDecades(v))", values) == is_log


def test_everybody_sees_what_the_devices_are_promised_and_what_was_spent(browser):
    served = Served()
    served.create("private", devices=1, codec="fp32")
    with grpc.insecure_channel(served.server.address) as channel:
        stub = exchange_pb2_grpc.GradientExchangeStub(channel)
        device = Device(
            stub, "d0", session="private", options={"privacy_epsilon": "4.0", "privacy_delta": "1e-05"}, run_steps=9
        )
        device.send(gradient_frame(0, 1.0, epsilon=1.25))
        page = browser.open(served.url, "phone", "light")
        page.wait_for_function("() => document.querySelector('#privacy').textContent.includes('epsilon 1.25 of 4')")
        cell = page.locator("#devices tr td:nth-child(4)")
        assert cell.inner_text().split("\n") == ["not told", "epsilon 1.25"]
        assert faults(page) == []
        page.context.close()
    served.stop()
    assert browser.problems == []
