"""The demo, as a person starts it."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from edgenewton.v1 import exchange_pb2 as pb
from typer.testing import CliRunner

from benchmarks.demo import __main__ as demo
from benchmarks.demo import screen
from benchmarks.demo.output_folder import output_folder
from benchmarks.demo.rounds import DemoFailedError, read_rounds
from benchmarks.shared.private_flower import RAY_DID_NOT_START

KEYS = {
    "accuracy",
    "target",
    "batches_to_target",
    "bytes_sent_per_device",
    "bytes_received_per_device",
    "seconds",
    "devices",
    "baseline_batches_to_target",
}


def processes_of(mark: str) -> list[str]:
    """Return the command lines of the living processes whose environment has `mark`."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append((folder / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return found


@pytest.mark.flower
def test_the_demo_trains_recognises_and_leaves_nothing_running(tmp_path):
    mark = f"EDGENEWTON_TEST={tmp_path}"
    folder = tmp_path / "a [red] demo"
    options = "--devices 2 --steps 4 --baseline-steps 3 --target 0.2"
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.demo", "--output", folder, *options.split()],
        env=os.environ | {"EDGENEWTON_TEST": str(tmp_path), "COLUMNS": "200"},
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=280,
        check=False,
    )
    assert run.returncode == 0, run.stdout
    assert processes_of(mark) == []

    summary = json.loads((folder / "summary.json").read_text())
    assert summary.keys() >= KEYS
    assert (summary["devices"], summary["batches"], summary["target"]) == (2, 4, 0.2)
    assert summary["accuracy"] > 0.2
    assert summary["batches_to_target"] in range(1, 5)
    # Each step carries at least the gradients, 4 bytes for each weight of the model in round-3.safetensors.
    weights = (folder / "round-3.safetensors").stat().st_size
    for key in ("bytes_sent_per_device", "bytes_received_per_device"):
        assert summary[key] > 4 * 0.9 * weights
    assert len(list(folder.glob("samples/*.png"))) == 10
    assert (folder / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "model.pt").exists()

    assert f"accuracy {summary['accuracy']:.1%}" in run.stdout, "the screen ends with the accuracy of the table"
    assert str(folder / "summary.json") in run.stdout
    rows = [line for line in run.stdout.splitlines() if "samples/digit-" in line]
    assert len(rows) == 10
    for row in rows:
        _, _, label, probability, truth, _ = (cell.strip() for cell in row.split("│"))
        assert label.isdigit()
        assert truth.isdigit()
        assert 0 < float(probability.rstrip("%")) <= 100


@pytest.fixture
def in_process(monkeypatch):
    """Run the demo in this process, without its set-up of the process itself."""
    monkeypatch.setattr(demo.signal, "signal", lambda number, handler: handler)
    return lambda *arguments: CliRunner().invoke(demo.app, [str(argument) for argument in arguments])


def test_files_of_others_are_refused(in_process, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    result = in_process("--output", tmp_path)
    assert result.exit_code == 1
    assert "holds files that are not the demo's" in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_second_demo_on_the_same_folder_is_refused(in_process, tmp_path):
    with output_folder(tmp_path, "demo", demo.RESULTS):
        result = in_process("--output", tmp_path)
    assert result.exit_code == 1
    assert "another demo writes to" in result.output


def test_a_failure_is_one_sentence_and_the_log_as_it_is(in_process, monkeypatch, tmp_path):
    def fail(*_arguments):
        raise DemoFailedError("the log ends with:\nINFO [bold]not markup[/bold] [/] weights['layer.0']")

    monkeypatch.setattr(demo, "train", fail)
    result = in_process("--output", tmp_path)
    assert result.exit_code == 1
    assert result.output.strip() == ("error: the log ends with:\nINFO [bold]not markup[/bold] [/] weights['layer.0']")


def test_an_error_that_nobody_foresaw_shows_no_locals():
    assert demo.app.pretty_exceptions_show_locals is False


EVALUATED = {"step": 5, "evaluate": {"accuracy": 0.5}}


@pytest.mark.parametrize(
    ("history", "message"),
    [
        (None, "of 2 rounds 0 were trained and 0 evaluated"),
        ([], "of 2 rounds 0 were trained and 0 evaluated"),
        ([EVALUATED], "of 2 rounds 1 were trained and 1 evaluated"),
        ([EVALUATED, {"step": 10}], "of 2 rounds 2 were trained and 1 evaluated"),
    ],
)
def test_a_run_succeeds_with_all_its_rounds_trained_and_evaluated(tmp_path, history, message):
    path = tmp_path / "history.json"
    if history is not None:
        path.write_text(json.dumps({"rounds": history}))
    with pytest.raises(DemoFailedError, match=message):
        read_rounds(path, 2)


class FlowerOfScripts:
    """A Flower whose runs are the given shell scripts, one after the other."""

    def __init__(self, scripts):
        self.scripts = iter(scripts)

    def run(self, _settings, _devices):
        return subprocess.Popen(["sh", "-c", next(self.scripts)], stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize(("failures", "message"), [(1, None), (demo.RAY_STARTS, "0 were trained and 0 evaluated")])
def test_ray_that_did_not_start_is_started_again(monkeypatch, tmp_path, failures, message):
    history = json.dumps({"rounds": [{"step": 0, "evaluate": {"accuracy": 0.5}}]})
    scripts = [f"echo 'File {RAY_DID_NOT_START}, line 1'"] * failures + [f"echo '{history}' > {tmp_path}/history.json"]
    flower = FlowerOfScripts(scripts)
    monkeypatch.setattr(demo, "private_flower", lambda _folder: contextlib.nullcontext(flower))
    with pytest.raises(DemoFailedError, match=message) if message else contextlib.nullcontext():
        last = demo.run_flower(tmp_path, {"rounds": 1}, 2, screen.Screen(), deadline_s=60)
        assert last["evaluate"]["accuracy"] == 0.5
    assert len(list(flower.scripts)) == (1 if message else 0)


def test_a_broken_stream_of_events_counts_nothing_twice(monkeypatch):
    def report(step: int) -> pb.SessionEvent:
        return pb.SessionEvent(session="s", report=pb.DeviceReport(device="a", step=step, bytes_received=100))

    streams = iter([[report(0), report(1), grpc.RpcError()], [grpc.RpcError()], [report(0), report(1), report(2)]])

    def follow(_address):
        for event in next(streams):
            if isinstance(event, grpc.RpcError):
                raise event
            yield event

    class NeverOver:
        is_set = staticmethod(lambda: False)
        wait = staticmethod(lambda seconds: None)

    monkeypatch.setattr(screen, "follow", follow)
    shown = screen.Screen()
    screen.watch("anywhere", shown, NeverOver())
    assert shown.training.statistics.devices["a"].batches == 3
    assert next(streams, None) is None
