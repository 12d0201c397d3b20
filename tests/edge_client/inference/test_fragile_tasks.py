"""Samples that overflow inside the model, and tasks whose code fails, in a program and on the command line."""

import os
import subprocess
import sys
from pathlib import Path

import fragile_task
import numpy as np
import onnx
import pytest
from engines import EVERY_ENGINE
from fragile_task import FourNumbers, Fragile, Pooled, Squared, WrongOutputs
from typer.testing import CliRunner

from edge_client import Recognizer
from edge_client.cli import app
from edge_client.inference import Artefact
from edge_client.inference.errors import NotFiniteError
from edge_client.inference.onnx_export import to_int8_onnx
from edge_client.tasks import SampleError, TaskError

GOOD, HUGE = b"1,2,3,4", b"3e38,3e38,3e38,3e38"


def artefact(kind=FourNumbers):
    return Artefact.of(kind(), f"fragile_task:{kind.__name__}", kind().model(), 7)


@pytest.fixture
def files(tmp_path):
    artefact().save(tmp_path / "model.pt")
    (tmp_path / "good").write_bytes(GOOD)
    (tmp_path / "huge").write_bytes(HUGE)
    return tmp_path


@pytest.mark.parametrize("kind", [FourNumbers, Pooled])
@pytest.mark.parametrize("engine", EVERY_ENGINE)
def test_an_overflow_has_no_label(engine, kind, files):
    recognizer = Recognizer.of(artefact(kind), engine, allow=[f"fragile_task:{kind.__name__}"])
    with pytest.raises(NotFiniteError, match=r"^sample 2 of 2: the model's output 'probabilities' is not finite"):
        recognizer.predict([GOOD, HUGE])
    with pytest.raises(SampleError, match=r"^the sample: .*send numbers of the size that the model was trained with"):
        recognizer.predict([HUGE])
    with pytest.raises(NotFiniteError, match="huge: the model's output"):
        recognizer.predict([files / "good", files / "huge"])
    with pytest.raises(NotFiniteError, match="sample 1 of 2: "):
        recognizer.predictions(np.array([[np.nan, 0.0, 0.0], [0.2, 0.3, 0.5]], np.float32))
    (prediction,) = recognizer.predict([GOOD])
    assert sum(prediction.probabilities.values()) == pytest.approx(1)


def test_an_int8_model_clips_what_is_beyond_its_range_but_not_an_overflow_before_it(tmp_path):
    task = Squared()
    (tmp_path / "int8.onnx").write_bytes(to_int8_onnx(artefact(Squared), task).content)
    onnx.checker.check_model(onnx.load(tmp_path / "int8.onnx"), full_check=True)
    recognizer = Recognizer.load(tmp_path / "int8.onnx", allow=["fragile_task:Squared"])
    probabilities = recognizer.probabilities(np.array([[0.5] * 4, [100.0] * 4, [1e20, 0, 0, 0]], np.float32))
    np.testing.assert_allclose(probabilities[:2].sum(1), 1, rtol=1e-6)
    assert np.isnan(probabilities[2]).all()
    with pytest.raises(NotFiniteError, match="sample 2 of 2: "):
        recognizer.predict([GOOD, HUGE])


@pytest.mark.parametrize(
    ("kind", "sample", "message"),
    [
        (Fragile, b"key", "decode of task 'fragile_task:Fragile' failed: KeyError: 'no such entry'"),
        (Fragile, b"exit", "decode of task 'fragile_task:Fragile' failed: SystemExit: 3"),
        (Fragile, b"none", "decode of task 'fragile_task:Fragile' gave a NoneType; it must return a tensor"),
        (Fragile, b"13,0,0,0", "the model of task 'fragile_task:Fragile' failed: ArithmeticError: 13 is unlucky"),
        (
            WrongOutputs,
            GOOD,
            "the model of task 'fragile_task:WrongOutputs' gave 1 x 2 outputs; 1 x 3 were expected, a row for each "
            "sample with a number for each label",
        ),
    ],
)
def test_a_task_whose_code_fails_is_named(kind, sample, message):
    with pytest.raises(TaskError) as caught:
        Recognizer.of(artefact(kind), allow=[f"fragile_task:{kind.__name__}"]).predict([sample])
    assert str(caught.value) == message


def run(*arguments):
    allowed = {"EDGENEWTON_ALLOW_TASK": "fragile_task:FourNumbers fragile_task:Fragile"}
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env=allowed)


def test_the_commands_say_so(files):
    labelled = files / "labelled" / "a"
    labelled.mkdir(parents=True)
    (labelled / "huge").write_bytes(HUGE)
    artefact(Fragile).save(files / "fragile.pt")
    for arguments, message in (
        (("predict", files / "model.pt", files / "good", files / "huge"), f"{files}/huge: the model's output"),
        (("evaluate", files / "model.pt", files / "labelled"), f"{labelled}/huge: the model's output"),
        (("evaluate", files / "model.pt"), "sample 1 of 2: the model's output 'probabilities' is not finite"),
        (
            ("predict", files / "fragile.pt", files / "good"),
            "true_label of task 'fragile_task:Fragile' failed: OSError",
        ),
    ):
        result = run(*arguments)
        assert result.exit_code == 1
        assert message in " ".join(result.stderr.split())
        assert "Traceback" not in result.output
        assert "%" not in result.stdout


# In a process of its own: the server's messages would meet tritonclient's.
ALIVE = """
import asyncio, sys
from pathlib import Path
from edge_client import Recognizer
from edge_client.daemon.config import DaemonConfig
from edge_client.daemon.daemon import Daemon
from edge_client.inference.batcher import Serving
async def is_alive(folder):
    daemon = Daemon(DaemonConfig(state_dir=folder))
    recognizer = Recognizer.load(folder / "model.pt", allow=["fragile_task:FourNumbers"])
    daemon.service.batcher.serving = Serving(1, recognizer)
    return await daemon._is_alive()
print(asyncio.run(is_alive(Path(sys.argv[1]))))
"""


def test_a_daemon_whose_model_makes_nothing_of_zeros_is_alive(tmp_path):
    """Else its watchdog would end it, again and again."""
    broken = artefact()
    broken.weights["bias"].fill_(float("nan"))
    broken.save(tmp_path / "model.pt")
    environment = {**os.environ, "PYTHONPATH": str(Path(fragile_task.__file__).parent)}
    result = subprocess.run(
        [sys.executable, "-c", ALIVE, tmp_path],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.stdout == "True\n", result.stderr
