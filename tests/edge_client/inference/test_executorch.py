"""Files for ExecuTorch: any runtime reads them, they are checked as the others are, and overflows are seen."""

import importlib.util

import numpy as np
import pytest
import torch
from engines import needs_executorch
from PIL import Image
from torch import Tensor, nn
from typer.testing import CliRunner

from edge_client.cli import app
from edge_client.inference import Artefact, ArtefactError, Recognizer
from edge_client.inference.engine import TorchEngine
from edge_client.tasks import SampleError, Task
from edge_client.tasks.digits import DigitsTask


def digits() -> Artefact:
    torch.manual_seed(1)
    task = DigitsTask()
    return Artefact.of(task, "digits", task.model(), 7)


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("executorch")
    digits().save(folder / "model.pt")
    result = run("export", folder / "model.pt", "--format", "executorch", "--output", folder / "model.pte")
    assert result.exit_code == 0, result.output
    return folder


@needs_executorch
def test_a_file_recognises_as_the_artefact_does(folder):
    loaded, original = Recognizer.load(folder / "model.pte"), Recognizer.load(folder / "model.pt")
    assert (loaded.engine, loaded.info) == ("executorch", original.info)
    raw = torch.randint(256, (5, 8, 8), dtype=torch.uint8).numpy()
    for count in (5, 1, 0):
        expected = original.probabilities(raw[:count])
        np.testing.assert_allclose(loaded.probabilities(raw[:count]), expected, rtol=0, atol=1e-5)
    DigitsTask().save_sample(0, folder / "digit.png")
    result = run("predict", folder / "model.pte", folder / "digit.png")
    assert result.exit_code == 0, result.output
    assert original.predict([folder / "digit.png"])[0].label in result.output
    assert "whole" in run("verify", folder / "model.pte").output


@needs_executorch
def test_the_runtime_of_executorch_reads_a_file_as_it_is(folder):
    from executorch.runtime import Runtime

    program = Runtime.get().load_program(folder / "model.pte")
    assert program.method_names == {"forward", "edgenewton"}
    sample = torch.randint(256, (1, 8, 8), dtype=torch.uint8)
    (probabilities,) = program.load_method("forward").execute((sample,))
    expected = Recognizer.load(folder / "model.pt").probabilities(sample.numpy())
    np.testing.assert_allclose(probabilities.numpy(), expected, rtol=0, atol=1e-5)


@needs_executorch
def test_answers_stay_when_the_next_sample_is_recognised(folder):
    loaded = Recognizer.load(folder / "model.pte")
    first = loaded.probabilities(np.zeros((1, 8, 8), np.uint8))
    kept = first.copy()
    loaded.probabilities(np.full((1, 8, 8), 255, np.uint8))
    np.testing.assert_array_equal(first, kept)


@needs_executorch
@pytest.mark.parametrize("place", [0.1, 0.5, 0.999])
def test_damage_is_noticed(folder, tmp_path, place):
    content = bytearray((folder / "model.pte").read_bytes())
    content[int(len(content) * place)] ^= 1
    (tmp_path / "flipped.pte").write_bytes(content)
    with pytest.raises(ArtefactError, match=r"flipped.pte is damaged"):
        Recognizer.load(tmp_path / "flipped.pte")
    result = run("verify", tmp_path / "flipped.pte")
    assert (result.exit_code, "damaged" in result.output) == (1, True)


@needs_executorch
def test_foreign_files_are_refused(folder, tmp_path):
    from edgenewton.common.sealed_file import Kind, seal_behind

    content = (folder / "model.pte").read_bytes()
    (tmp_path / "bare.pte").write_bytes(content[: content.index(b"edgenewton-seal:")])
    (tmp_path / "text.pte").write_bytes(seal_behind(b"no program", Kind.EXECUTORCH_MODEL))
    (tmp_path / "model.pte").write_bytes((folder / "model.pt").read_bytes())
    for name, words in (
        ("bare.pte", "is not a model of EdgeNewton, or is damaged: its digest is not at its end"),
        ("text.pte", "ExecuTorch refuses the model"),
        ("model.pte", "is not a model for ExecuTorch: it is a file of kind 'model'"),
        ("none.pte", "none.pte cannot be read: No such file"),
    ):
        with pytest.raises(ArtefactError, match=words):
            Recognizer.load(tmp_path / name)
    assert run("verify", tmp_path / "bare.pte").exit_code == 1
    with pytest.raises(ArtefactError, match="is a model for ExecuTorch; engine 'onnx' cannot run it"):
        Recognizer.load(folder / "model.pte", "onnx")
    with pytest.raises(ArtefactError, match="device 'cuda': ExecuTorch runs models on the CPU here"):
        Recognizer.load(folder / "model.pte", device="cuda")


class Elsewhere(DigitsTask):
    """Digits, of a task whose code the recognizer may not run."""

    name = "elsewhere"


@needs_executorch
def test_arrays_are_recognised_without_the_code_of_the_task(tmp_path):
    from edge_client.inference.executorch_export import to_executorch

    torch.manual_seed(1)
    artefact = Artefact.of(Elsewhere(), "somebodys.code:Task", Elsewhere().model(), 7)
    (tmp_path / "model.pte").write_bytes(to_executorch(artefact, Elsewhere()))
    recognizer = Recognizer.load(tmp_path / "model.pte")
    (prediction,) = recognizer.predict([np.zeros((8, 8), np.uint8)])
    (expected,) = Recognizer.of(digits()).predict([Image.new("L", (8, 8))])
    assert prediction.probabilities == pytest.approx(expected.probabilities, abs=1e-5)
    with pytest.raises(SampleError, match=r"only decoded samples .* task 'somebodys.code:Task' is not of this package"):
        recognizer.predict(["digit.png"])


class Pictures(Task):
    """Maxima over height and width of activations that overflow for a large pixel."""

    name = "pictures"
    labels = ("a", "b")
    input_shape = (1, 8, 8)

    def model(self) -> nn.Module:
        layers = (nn.Conv2d(1, 4, 1), nn.GELU(), nn.MaxPool2d(2))
        return nn.Sequential(*layers, nn.Flatten(), nn.Tanh(), nn.Linear(64, 2))

    def train_data(self, partition):
        raise NotImplementedError

    test_data = train_data

    def decode(self, sample: object) -> Tensor:
        raise NotImplementedError


@needs_executorch
def test_a_maximum_does_not_hide_an_overflow():
    from edge_client.inference.executorch_engine import ExecutorchEngine
    from edge_client.inference.executorch_export import to_executorch

    torch.manual_seed(1)
    artefact = Artefact.of(Pictures(), "pictures", Pictures().model(), 0)
    artefact.weights["0.weight"].fill_(-10)
    engine = ExecutorchEngine(to_executorch(artefact, Pictures()))
    raw = torch.rand(3, 1, 8, 8).numpy()
    for place in range(2):  # XNNPACK's maximum depends on the order of its operands
        raw[place, 0, 0, place] = 3e38
    probabilities = engine(raw)
    assert np.isnan(probabilities[:2]).all()
    np.testing.assert_allclose(probabilities[2:], TorchEngine(artefact, Pictures())(raw[2:]), rtol=0, atol=1e-5)


@pytest.mark.skipif(importlib.util.find_spec("executorch") is not None, reason="the extra is installed")
def test_without_the_extra_the_error_says_what_to_install(tmp_path):
    digits().save(tmp_path / "model.pt")
    result = run("export", tmp_path / "model.pt", "--format", "executorch", "--output", tmp_path / "model.pte")
    assert (
        "ExecuTorch needs the package 'executorch', which is not installed: pip install 'edgenewton[executorch]'"
        in " ".join(result.stderr.split())
    )
    assert not (tmp_path / "model.pte").exists()
    with pytest.raises(ArtefactError, match=r"pip install 'edgenewton\[executorch\]'"):
        Recognizer.of(digits(), "executorch")


def test_a_release_that_does_not_fit_torch_is_told_from_none(monkeypatch, tmp_path):
    from edge_client.inference import executorch_engine

    name = "built_for_another_torch"
    (tmp_path / f"{name}.py").write_text('raise ImportError("undefined symbol: _ZN3c10")')
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ArtefactError) as caught:
        executorch_engine.import_executorch(name)
    assert f"cannot be loaded beside PyTorch {torch.__version__}: undefined symbol: _ZN3c10;" in str(caught.value)
