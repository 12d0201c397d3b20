from dataclasses import replace

import pytest
import torch
from PIL import Image
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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden.weight": torch.zeros(3, 3)}, "its 'hidden.weight' is 3 x 3, the model's 64 x 512"),
        ({"conv2.bias": torch.tensor(1.0)}, "its 'conv2.bias' is a scalar, the model's 32"),
        ({"conv1.bias": None}, "it lacks 'conv1.bias', which is 16 in the model"),
        ({"extra": torch.zeros(2)}, "its 'extra', which is 2, is not in the model"),
        ({"output.bias": torch.zeros(3), "conv1.bias": torch.zeros(4)}, "its 'conv1.bias' is 4"),  # the first one
    ],
)
def test_weights_of_another_model_are_refused(tmp_path, changes, message):
    weights = {name: tensor for name, tensor in (artefact().weights | changes).items() if tensor is not None}
    replace(artefact(), weights=weights).save(tmp_path / "other.pt")
    with pytest.raises(ArtefactError, match=f"other.pt: the artefact does not fit task 'digits': {message}"):
        Recognizer.load(tmp_path / "other.pt")


def test_labels_and_inputs_of_another_task_are_refused():
    with pytest.raises(ArtefactError, match="it has 2 labels, the task 10"):
        Recognizer.of(replace(artefact(), labels=("cat", "dog")))
    with pytest.raises(ArtefactError, match="its inputs are 3 x 32 x 32, the task's 1 x 8 x 8"):
        Recognizer.of(replace(artefact(), input_shape=(3, 32, 32)))


class WithDropout(DigitsTask):
    def model(self):
        return torch.nn.Sequential(torch.nn.Dropout(0.9), super().model())


def test_dropout_is_off():
    torch.manual_seed(0)
    model = WithDropout().model()
    path = f"{__name__}:WithDropout"
    recognizer = Recognizer.of(Artefact.of(WithDropout(), path, model, 0), allow=[path])
    image = TASK.sample_image(0)
    assert recognizer.predict([image]) == recognizer.predict([image])
    expected = model.eval()(TASK.prepare(image)[None]).softmax(1).max().item()
    assert recognizer.predict([image])[0].probability == pytest.approx(expected, abs=1e-6)


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
    [(None, "does not exist"), (b"", "is empty"), (b"text", "is not an image"), ("wrong size", "is 9 x 8 pixels")],
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
        Recognizer.of(artefact()).predict(["nope.png"])
