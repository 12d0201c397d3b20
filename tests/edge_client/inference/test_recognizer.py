import os
import pickle
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

from edge_client import Recognizer
from edge_client.cli import app
from edge_client.inference import Artefact, ArtefactError
from edge_client.tasks import Partition, SampleError
from edge_client.tasks.digits import DigitsTask

TASK = DigitsTask()


def artefact(step: int = 7) -> Artefact:
    torch.manual_seed(1)
    return Artefact.of(TASK, "digits", TASK.model(), step)


@pytest.fixture
def model_path(tmp_path):
    path = tmp_path / "models" / "model.pt"
    artefact().save(path)
    return path


def test_predictions_are_those_of_the_model(model_path, tmp_path):
    model = TASK.model()
    model.load_state_dict(artefact().weights)
    paths = [tmp_path / f"{i}.png" for i in range(5)]
    for index, path in enumerate(paths):
        TASK.save_sample(index, path)
    expected = model(TASK.test_data(Partition()).inputs[:5]).softmax(1)
    recognizer = Recognizer.load(model_path)
    for prediction, row in zip(recognizer.predict(paths), expected, strict=True):
        assert prediction.label == str(row.argmax().item())
        assert prediction.probability == pytest.approx(row.max().item(), abs=1e-5)
        assert sum(prediction.probabilities.values()) == pytest.approx(1.0, abs=1e-5)
    assert recognizer.predict([]) == []
    assert recognizer.true_label(paths[0]) in TASK.labels


def test_everything_survives_the_file(model_path):
    loaded, original = Artefact.load(model_path), artefact()
    assert (loaded.task, loaded.labels, loaded.input_shape, loaded.step) == ("digits", TASK.labels, (1, 8, 8), 7)
    assert all(torch.equal(tensor, original.weights[name]) for name, tensor in loaded.weights.items())
    assert [path.name for path in model_path.parent.iterdir()] == ["model.pt"]  # nothing half-written is left


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (os.system, (f"touch {self.path}",))


def rewrite(path: Path, **changes) -> None:
    content = torch.load(path, weights_only=True)
    torch.save(content | changes, path)


def flip_a_weight(path: Path) -> None:
    content = torch.load(path, weights_only=True)
    content["weights"]["0.bias"][0] += 1e-3
    torch.save(content, path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "does not exist; train a model first"),
        (lambda path: path.write_bytes(b""), "is empty"),
        (lambda path: path.write_bytes(b"garbage" * 100), "is not a model"),
        (lambda path: Image.new("L", (8, 8)).save(path, format="PNG"), "is not a model"),
        (lambda path: path.write_bytes(path.read_bytes()[:5000]), "is not a model that can be read, or is damaged"),
        (lambda path: torch.save({"weights": {}}, path), "is not a model of EdgeNewton"),
        (lambda path: torch.save([1, 2], path), "is not a model of EdgeNewton"),
        (lambda path: rewrite(path, format_version=2), "format version 2; this release reads up to 1"),
        (lambda path: rewrite(path, labels=["a"]), "is damaged"),
        (lambda path: rewrite(path, weights=3), "is damaged"),
        (flip_a_weight, "do not have the digest"),
        (lambda path: (path.unlink(), path.mkdir()), "cannot be read"),
    ],
)
def test_files_that_are_no_whole_model_are_refused(model_path, damage, message):
    damage(model_path)
    with pytest.raises(ArtefactError, match=message):
        Recognizer.load(model_path)


@pytest.mark.parametrize("as_plain_pickle", [True, False])
def test_a_file_that_would_run_code_is_refused(model_path, tmp_path, as_plain_pickle):
    trace = tmp_path / "was-here"
    content = {"format": "edgenewton-model", "weights": Malicious(trace)}
    if as_plain_pickle:
        model_path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, model_path)
    with pytest.raises(ArtefactError, match="wants to run code"):
        Recognizer.load(model_path)
    assert not trace.exists()


def test_weights_of_another_model_are_refused():
    good = artefact()
    weights = good.weights | {"6.weight": torch.zeros(3, 3)}
    with pytest.raises(ArtefactError, match=r"do not fit the model of task 'digits'(.|\n)*6.weight"):
        Recognizer(Artefact(good.task, good.labels, good.input_shape, 0, weights))


def test_checkpoint_becomes_a_model(tmp_path):
    path = tmp_path / "round-1.safetensors"
    save_file(artefact().weights, path, {"task": "digits", "step": "20"})
    assert Artefact.from_checkpoint(path).step == 20
    save_file(artefact().weights, path)
    with pytest.raises(ArtefactError, match="no checkpoint of EdgeNewton"):
        Artefact.from_checkpoint(path)
    path.write_text("nonsense")
    with pytest.raises(ArtefactError, match="not a checkpoint that can be read"):
        Artefact.from_checkpoint(path)


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_predict_prints_label_probability_and_true_label(model_path, tmp_path):
    label = TASK.save_sample(3, tmp_path / "three.png")
    result = run("predict", model_path, tmp_path / "three.png")
    assert result.exit_code == 0
    (row,) = [line for line in result.stdout.splitlines() if "%" in line]
    assert row.rstrip(" │").endswith(label)


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "does not exist"), (b"", "is empty"), (b"text", "is not an image"), ("wrong size", "has 9 x 8 pixels")],
)
def test_predict_says_what_is_wrong_with_a_file(model_path, tmp_path, content, message):
    path = tmp_path / "x.png"
    if content == "wrong size":
        Image.new("L", (9, 8)).save(path)
    elif content is not None:
        path.write_bytes(content)
    result = run("predict", model_path, path)
    assert result.exit_code == 1
    assert f"error: {path}" in result.stderr
    assert message in result.stderr
    assert "Traceback" not in result.output


def test_predict_without_a_model_says_so(tmp_path):
    TASK.save_sample(0, tmp_path / "zero.png")
    result = run("predict", tmp_path / "none.pt", tmp_path / "zero.png")
    assert result.exit_code == 1
    assert "none.pt does not exist" in result.stderr


def test_one_bad_sample_is_named():
    with pytest.raises(SampleError, match="nope.png does not exist"):
        Recognizer(artefact()).predict(["nope.png"])
