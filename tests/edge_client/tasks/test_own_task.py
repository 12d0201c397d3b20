"""The examples in docs/your-own-task.md, from their text: trained, tried and served as a reader would."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from edge_client.cli import app
from edge_client.inference import Recognizer

DOCS = Path(__file__).parents[3] / "docs" / "your-own-task.md"


def write_example(folder, name):
    (source,) = re.findall(rf"```python\n(# {name}\n.*?)```", DOCS.read_text(), re.DOTALL)
    (folder / name).write_text(source)


@pytest.fixture
def leaves(tmp_path, monkeypatch):
    write_example(tmp_path, "leaves.py")
    rng = np.random.default_rng(0)
    for label, is_tall in (("birch", True), ("oak", False)):
        folder = tmp_path / "pictures" / label
        folder.mkdir(parents=True)
        for index in range(40):
            pixels = rng.integers(0, 60, (20, 20), dtype=np.uint8)
            place = rng.integers(4, 16)
            pixels[(slice(None), slice(place - 2, place + 2)) if is_tall else slice(place - 2, place + 2)] = 220
            Image.fromarray(pixels).save(folder / f"{index}.png")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("LEAVES", str(tmp_path / "pictures"))
    monkeypatch.setenv("EDGENEWTON_ALLOW_TASK", "leaves:LeavesTask")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


def test_the_example_of_the_docs_works(leaves):
    assert "input 1 x 16 x 16; labels birch, oak" in run("tasks", "leaves:LeavesTask")
    run("train", "-c", "task=leaves:LeavesTask", "-c", "steps=40", "--output", "leaves.pt")
    told = run("evaluate", "leaves.pt", "--confusion", "confusion.png")
    accuracy = float(re.search(r"accuracy ([\d.]+)% on 16 samples", told)[1])
    assert accuracy > 85
    with Image.open("confusion.png") as picture:
        assert picture.width > 200
    told = run("evaluate", "leaves.pt", leaves / "pictures")
    assert "on 80 samples" in told
    assert "40" in told
    path = leaves / "pictures" / "oak" / "3.png"
    (prediction,) = Recognizer.load("leaves.pt", allow=["leaves:LeavesTask"]).predict([path.read_bytes()])
    assert prediction.label in run("predict", "leaves.pt", path)


def test_evaluate_says_what_is_wrong(leaves):
    run("train", "-c", "task=leaves:LeavesTask", "-c", "steps=1", "--output", "leaves.pt")
    (leaves / "others" / "elm").mkdir(parents=True)
    (leaves / "others" / "elm" / "x.png").touch()
    for arguments, message in (
        (("leaves.pt", leaves / "none"), "none is not a folder"),
        (("none.pt",), "none.pt does not exist"),
        (("leaves.pt", leaves / "others"), "the model does not know elm; it knows birch, oak"),
        (("leaves.pt", "--confusion", leaves / "no" / "folder.png"), "cannot be written"),
        (("leaves.pt", "--engine", "export"), "give a folder of files"),
    ):
        result = CliRunner().invoke(app, ["evaluate", *map(str, arguments)])
        assert result.exit_code in (1, 2)
        assert message in " ".join(result.stderr.split())
        assert "Traceback" not in result.output


def test_the_stream_of_the_docs_is_trained_on(tmp_path, monkeypatch):
    write_example(tmp_path, "sensor.py")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    run("train", "-c", "task=sensor:SensorTask", "-c", "steps=80", "--output", "sensor.pt")
    told = run("evaluate", "sensor.pt", "--allow-task", "sensor:SensorTask")
    accuracy = float(re.search(r"accuracy ([\d.]+)% on 200 samples", told)[1])
    assert accuracy > 88
    recall = float(re.search(r"alarm . *\d+ . *([\d.]+)%", told)[1])
    assert recall > 75
