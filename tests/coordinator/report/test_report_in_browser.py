"""What a person sees of the report, in a browser: on a desk and on a phone."""

from pathlib import Path

from browser import NEEDS_CHROMIUM, chromium, screenshot
from edgenewton.v1 import exchange_pb2 as pb
from edgenewton.v1.tensor_spec import TensorSpec
from looks import faults
from session_events import committed, joined, left, phase, report

from coordinator.report.html import render
from coordinator.report.run import Checkpoint, Round, Run
from coordinator.telemetry.history import StepRecord
from coordinator.telemetry.statistics import SessionStatistics

DEVICES = 40
STEPS = 60


def run_of(count):
    """Return a run of so many devices, the last of which was late, failed and left."""
    names = [f"plant-munich-hall-7-line-12-gateway-{number:05}" for number in range(count)]
    statistics, steps = SessionStatistics("leaves"), []
    events = [joined(name, 1.7e9) for name in names] + [phase(pb.PHASE_TRAINING, 1.7e9)]
    for step in range(STEPS):
        now = 1.7e9 + step
        events += [report(name, step, now, 1_000 * step, 1_000 * step, 3_000 * step, 0.8**step) for name in names]
        late = names[-1:] if step % 20 == 19 else []
        events.append(committed(step, now, loss=2.3 * 0.8**step, left_out=late))
        wire = 1_000_000 * step
        steps.append(
            StepRecord(
                step,
                now,
                0.01 * (1 + step % 7),
                64,
                count,
                len(late),
                2.3 * 0.8**step,
                *((90 + step // 10, 100) if step % 10 == 0 else (None, None)),
                wire,
                wire,
                3 * wire,
            )
        )
    reason = "device 'a' sent tensors of another model: " + "conv_" * 60
    for event in (*events, left(names[-1], 1.7e9 + STEPS, "INVALID_ARGUMENT", reason)):
        statistics.apply(event)
    statistics.refuse("<b id=evil>x</b>" * 8, "FAILED_PRECONDITION", reason, 1.7e9)
    measured = {"loss": 0.123456, "accuracy": 0.98765, "seconds": 12.3456}
    return Run(
        "leaves",
        Path("record.sqlite"),
        ["leaves"],
        "ended",
        "all devices have finished",
        1.7e9,
        1.7e9 + STEPS,
        steps,
        committed=STEPS,
        run_steps=3_000,
        devices=statistics.devices,
        refusals=statistics.refusals,
        incidents=[*statistics.incidents, *statistics.refused],
        received=10**9,
        sent=10**9,
        saved=3 * 10**9,
        tensors=(TensorSpec("w", (40, 40)),),
        settings={"codec": "int8", "allow_labels": ["x" * 60]},
        rounds=[Round(1, 30, measured, measured)],
        checkpoints=[Checkpoint("round-1.safetensors", "3", "leaves", 10**6)],
    )


@NEEDS_CHROMIUM
def test_everything_has_its_place(tmp_path):
    path = tmp_path / "report.html"
    path.write_text(render(run_of(DEVICES)))
    with chromium() as browser:
        for size in ("desktop", "phone"):
            page = browser.open(path.as_uri(), size)
            assert faults(page) == []
            screenshot(page, f"report-{size}")
            last = f"plant-munich-hall-7-line-12-gateway-{DEVICES - 1:05}"
            cell = page.locator(f".stack:not(.events) td[title='{last}']")
            assert cell.inner_text() == f"plant-munic…ateway-{DEVICES - 1:05}"
            assert page.locator(".plots svg").count() == 4
            # Small print, but not too small to read.
            heights = page.evaluate(
                "[...document.querySelectorAll('.plots text')].map(t => t.getBoundingClientRect().height)"
            )
            assert min(heights) > 11
            cells = page.locator(".stack:not(.events) tbody tr:last-child td").all()
            assert len(cells) == 5 + 12  # of the last round and the last device
            assert all(cell.is_visible() for cell in cells)
        assert page.locator(".stack thead").first.is_hidden()  # on the phone each value has its name above it
        assert page.locator("#evil").count() == 0
        assert browser.problems == []
