"""All engines give the same probabilities, and exported files are as safe and as checked as artefacts."""

import gc
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from engines import EVERY_ENGINE
from PIL import Image
from typer.testing import CliRunner

from edge_client.cli import app
from edge_client.inference import Artefact, ArtefactError, Recognizer
from edge_client.inference.onnx_engine import read_onnx, seal
from edge_client.inference.onnx_export import to_int8_onnx, to_onnx
from edge_client.tasks import Partition, SampleError, load_task
from edge_client.tasks.digits import DigitsTask
from edge_client.training.settings import TrainSettings
from edge_client.training.trainer import Trainer

TASKS = ("digits", "keywords", "motion")


def artefact_of(name: str) -> Artefact:
    torch.manual_seed(1)
    task = load_task(name)
    return Artefact.of(task, name, task.model(), 7)


def raw_samples(name: str, count: int) -> torch.Tensor:
    task = load_task(name)
    numbers = torch.rand(count, *task.raw_shape, generator=torch.Generator().manual_seed(3))
    return numbers if task.raw_dtype.is_floating_point else (numbers * 255).to(task.raw_dtype)


def save(name, folder):
    """Save an artefact and its ONNX file, and return the folder."""
    artefact = artefact_of(name)
    artefact.save(folder / "model.pt")
    # Python 3.11's parser, which the export uses, fails when a finaliser of an earlier test's garbage runs within it.
    gc.collect()
    (folder / "model.onnx").write_bytes(to_onnx(artefact, load_task(name)))
    return folder


@pytest.fixture(scope="module", params=TASKS)
def files(request, tmp_path_factory):
    return request.param, save(request.param, tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return save("digits", tmp_path_factory.mktemp("digits"))


@pytest.mark.parametrize("engine", EVERY_ENGINE)
def test_engines_agree_in_any_batch(files, engine):
    name, folder = files
    model = load_task(name).model()
    model.load_state_dict(artefact_of(name).weights)
    model.eval()
    raw = raw_samples(name, 5)
    with torch.no_grad():
        expected = model(load_task(name).preprocess(raw)).softmax(1)
    loaded = Recognizer.load(folder / ("model.onnx" if engine == "onnx" else "model.pt"), engine)
    assert loaded.engine == engine
    for count in (5, 1, 2):
        np.testing.assert_allclose(loaded.probabilities(raw[:count].numpy()), expected[:count], rtol=0, atol=1e-5)


def test_an_exported_file_knows_what_the_artefact_knows(files):
    _, folder = files
    from_artefact, from_onnx = Recognizer.load(folder / "model.pt"), Recognizer.load(folder / "model.onnx")
    assert from_onnx.info == from_artefact.info
    onnx.checker.check_model(onnx.load(folder / "model.onnx"), full_check=True)  # it is ONNX for everybody else, too


@pytest.mark.parametrize("place", [0.1, 0.5, 0.99])
def test_damage_in_an_exported_file_is_noticed(digits, tmp_path, place):
    content = bytearray((digits / "model.onnx").read_bytes())
    content[int(len(content) * place)] ^= 1
    path = tmp_path / "flipped.onnx"
    path.write_bytes(content)
    with pytest.raises(ArtefactError, match=r"flipped.onnx is damaged"):
        Recognizer.load(path)
    path.write_bytes(content[:-10])
    with pytest.raises(ArtefactError, match=r"flipped.onnx is not a model of EdgeNewton, or is damaged"):
        Recognizer.load(path)


def changed(folder, tmp_path, change):
    model = onnx.load(folder / "model.onnx")
    (entry,) = [entry for entry in model.metadata_props if entry.key == "edgenewton"]
    change(model, entry)
    del model.metadata_props[1]  # the old digest
    (tmp_path / "changed.onnx").write_bytes(seal(model.SerializeToString()))
    return tmp_path / "changed.onnx"


def test_exported_files_of_others_and_of_newer_releases_are_refused(digits, tmp_path):
    with pytest.raises(ArtefactError, match="does not exist|No such file"):
        Recognizer.load(tmp_path / "none.onnx")

    def newer(model, entry):
        entry.value = entry.value.replace('"format_version": 1', '"format_version": 2')

    with pytest.raises(ArtefactError, match=r"changed.onnx: the model has format version 2; this release"):
        Recognizer.load(changed(digits, tmp_path, newer))

    def foreign(model, entry):
        entry.key = "somebody else"

    with pytest.raises(ArtefactError, match="metadata do not say what it recognises"):
        Recognizer.load(changed(digits, tmp_path, foreign))

    def external(model, entry):
        onnx.external_data_helper.set_external_data(model.graph.initializer[0], "/etc/passwd")
        model.graph.initializer[0].ClearField("raw_data")
        model.graph.initializer[0].data_location = onnx.TensorProto.EXTERNAL

    with pytest.raises(ArtefactError, match="ONNX Runtime refuses the model"):
        Recognizer.load(changed(digits, tmp_path, external))


def test_an_exported_model_recognises_arrays_without_the_code_of_its_task(digits, tmp_path):
    def elsewhere(model, entry):
        entry.value = entry.value.replace('"digits"', '"somebodys.code:Task"')

    recognizer = Recognizer.load(changed(digits, tmp_path, elsewhere))
    (prediction,) = recognizer.predict([np.zeros((8, 8), np.uint8)])
    (expected,) = Recognizer.of(artefact_of("digits")).predict([Image.new("L", (8, 8))])
    assert prediction.label == expected.label
    assert prediction.probabilities == pytest.approx(expected.probabilities, abs=1e-5)
    with pytest.raises(SampleError, match=r"only decoded samples .* task 'somebodys.code:Task' is not of this package"):
        recognizer.predict(["digit.png"])
    with pytest.raises(SampleError, match="the sample is 8 x 9; the model expects 8 x 8"):
        recognizer.predict([np.zeros((8, 9), np.uint8)])
    with pytest.raises(SampleError, match="the sample holds float64; the model expects uint8"):
        recognizer.predict([np.zeros((8, 8))])


def test_int8_has_its_accuracy_beside_the_float_one(digits):
    trainer = Trainer(TrainSettings(steps=40))
    trainer.train(40)
    with trainer.optimizer.averaged():
        artefact = Artefact.of(trainer.task, "digits", trainer.model, 40)
    quantised = to_int8_onnx(artefact, trainer.task)
    result = trainer.evaluate()
    assert quantised.samples == result.samples == 360
    assert quantised.float_accuracy == pytest.approx(result.correct / 360)
    assert quantised.accuracy > 0.9
    kinds = {init.data_type for init in onnx.load_from_string(quantised.content).graph.initializer}
    assert onnx.TensorProto.INT8 in kinds
    assert len(quantised.content) < 0.5 * (digits / "model.onnx").stat().st_size


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_export_and_predict_commands(tmp_path):
    artefact_of("digits").save(tmp_path / "model.pt")
    DigitsTask().save_sample(0, tmp_path / "digit.png")
    result = run("export", tmp_path / "model.pt", "--format", "onnx", "--int8", "--output", tmp_path / "model.onnx")
    assert result.exit_code == 0, result.output
    assert "accuracy on 360 held-out samples" in " ".join(result.output.split())
    read_onnx(tmp_path / "model.onnx")
    assert run("predict", tmp_path / "model.onnx", tmp_path / "digit.png").exit_code == 0
    result = run("predict", "--engine", "torch", tmp_path / "model.onnx", tmp_path / "digit.png")
    assert "is an ONNX model; engine 'torch' cannot run it" in result.stderr
    result = run("export", tmp_path / "model.pt", "--int8")
    assert (result.exit_code, "--int8 goes with --format onnx" in result.stderr) == (2, True)
    result = run("export", tmp_path / "none.pt")
    assert "none.pt does not exist" in result.stderr


WITHOUT_TRAINING = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        refused = {"flwr", "grpc", "google", "sklearn", "ray", "pydantic", "onnx", "fastapi"}
        if name.partition(".")[0] in refused or name.startswith("edgenewton.v1"):
            raise ImportError(f"{name} is not there")
sys.meta_path.insert(0, Refuse())
from edge_client import Recognizer
for path in sys.argv[1:3]:
    print(Recognizer.load(path).predict([sys.argv[3]])[0].label)
"""


def test_an_application_needs_nothing_of_training(digits, tmp_path):
    DigitsTask().save_sample(0, tmp_path / "digit.png")
    files = [digits / "model.pt", digits / "model.onnx", tmp_path / "digit.png"]
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_TRAINING, *files], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stderr
    label = Recognizer.of(artefact_of("digits")).predict([tmp_path / "digit.png"])[0].label
    assert result.stdout.split() == [label, label]


def test_without_the_extra_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ArtefactError, match=r"pip install 'edgenewton\[recognition\]'"):
        Recognizer.of(artefact_of("digits"), "onnx")


def test_an_unknown_engine_is_named():
    with pytest.raises(ValueError, match="engine 'tpu' is unknown; known are torch, export, onnx, executorch"):
        Recognizer.of(artefact_of("digits"), "tpu")


def test_the_held_out_samples_are_recognised_alike_from_numbers_and_from_files():
    task = DigitsTask()
    raw = torch.stack([task.decode(task.sample_image(index)) for index in range(360)])
    assert raw.dtype == torch.uint8
    assert torch.equal(task.preprocess(raw), task.test_data(Partition()).inputs)
