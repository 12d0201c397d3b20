import numpy as np
import pytest
import torch
from small_packages import write_deb

from edge_client.curvature.layers import supported_layer
from edge_client.inference import Artefact, Recognizer
from edge_client.inference.onnx_export import save_onnx, to_int8_onnx, to_onnx
from edge_client.tasks import Partition, SampleError, Samples, load_task
from edge_client.tasks.text import ALPHABET, PLACES, TOPICS, to_tokens
from edge_client.training.evaluation import evaluate
from edge_client.training.settings import parse_settings
from edge_client.training.trainer import Trainer


def of_topic(number):
    letters = "abcdefghij"
    return "\n%\n".join(f"{letters[(number + k) % 10] * 3} the saying {k} of topic {number}" for k in range(60))


@pytest.fixture(autouse=True)
def task(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGENEWTON_CACHE", str(tmp_path / "cache"))
    files = {f"usr/share/games/fortunes/{name}": of_topic(k).encode() for k, name in enumerate(TOPICS)}
    made = load_task("text")
    made.fetch(write_deb(tmp_path / "fortunes_1_all.deb", files))
    return made


def test_each_place_is_asked_for_the_next_character(task):
    samples = task.train_data(Partition())
    assert samples.inputs.shape == samples.targets.shape == (len(samples), PLACES)
    torch.testing.assert_close(samples.inputs[:, 1:], samples.targets[:, :-1])
    assert samples.predictions == len(samples) * PLACES
    torch.testing.assert_close(samples.answers, samples.targets[:, -1])


def test_held_out_sayings_are_never_trained_on(task):
    texts = {
        name: " ".join("".join(ALPHABET[token] for token in row) for row in part.inputs.tolist())
        for name, part in {"train": task.train_data(Partition()), "test": task.test_data(Partition())}.items()
    }
    sayings = [saying for k in range(len(TOPICS)) for saying in of_topic(k).split("\n%\n")]
    assert any(saying in texts["train"] for saying in sayings)
    assert any(saying in texts["test"] for saying in sayings)
    assert not [saying for saying in sayings if saying in texts["train"] and saying in texts["test"]]


def test_natural_devices_have_topics_of_their_own(task):
    windows = [{tuple(row) for row in task.train_data(Partition(k, 2, "natural")).inputs.tolist()} for k in range(2)]
    assert not windows[0] & windows[1]
    skewed = [len(task.train_data(Partition(k, 4, "dirichlet", alpha=0.3))) for k in range(4)]
    assert sum(skewed) == len(task.train_data(Partition()))
    assert max(skewed) > 1.2 * min(skewed)


def test_accuracy_and_loss_are_those_of_all_predictions(task):
    model = task.model()
    samples = task.test_data(Partition())
    result = evaluate(model, task, samples)
    assert result.samples == samples.targets.numel()
    with torch.no_grad():
        logs = model(samples.inputs).log_softmax(dim=-1)
    rows = [(logs[i, t], samples.targets[i, t]) for i in range(len(samples)) for t in range(PLACES)]
    assert result.correct == sum(int(row.argmax()) == int(target) for row, target in rows)
    assert result.loss == pytest.approx(-sum(float(row[target]) for row, target in rows) / len(rows), rel=1e-4)


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize("scope", ["shared", "probe"])
def test_it_trains_and_every_layer_has_curvature(task, scope):
    settings = parse_settings(["task=text", "steps=12", "batch-size=16", f"curvature-scope={scope}"])
    trainer = Trainer(settings)
    before = trainer.evaluate()
    trainer.train(12)
    after = trainer.evaluate()
    assert after.loss < before.loss - 0.5
    supported = [m for name, m in trainer.model.named_modules() if supported_layer(name, m) is not None]
    with_curvature = {id(p) for module in supported for p in module.parameters()}
    assert all(id(p) in with_curvature for p in trainer.model.parameters() if p.requires_grad)


def test_recognition_answers_with_the_character_that_comes_next(task, tmp_path):
    model = task.model().eval()
    recognizer = Recognizer.of(Artefact.of(task, "text", model, 0))
    path = tmp_path / "text.txt"
    label = task.save_sample(0, path)
    place = int(task.held_out[0])
    assert label == task.labels[int(task.loaded.targets[place, -1])]
    torch.testing.assert_close(task.prepare(path), task.loaded.raw[place])
    (prediction,) = recognizer.predict([path])
    with torch.no_grad():
        expected = model(task.loaded.raw[place].unsqueeze(0))[0, -1]
    assert prediction.label == task.labels[int(expected.argmax())]


def test_a_short_text_is_padded_and_a_long_one_cut(task):
    assert task.decode(b"yes").tolist() == [ALPHABET.index("\n")] * (PLACES - 3) + to_tokens("yes").tolist()
    assert task.decode(b"x" * 1000 + b"yes").tolist()[-3:] == to_tokens("yes").tolist()


@pytest.mark.parametrize(
    ("sample", "message"),
    [(b"", "is empty"), (b"\xff\xfe", "no text in UTF-8"), ("nowhere.txt", "does not exist"), (7, "not int")],
)
def test_what_is_no_text_is_refused(task, sample, message):
    with pytest.raises(SampleError, match=message):
        task.decode(sample)


def test_the_probe_is_equal_on_all_devices(task):
    drawn = [task.probe(torch.Generator().manual_seed(3), 4) for _ in range(2)]
    assert drawn[0].shape == (4, PLACES)
    assert torch.equal(*drawn)
    assert int(drawn[0].max()) < len(ALPHABET)


def test_samples_of_one_label_each_are_as_they_were():
    samples = Samples(torch.zeros(3, 2), torch.tensor([0, 1, 1]))
    assert samples.predictions == len(samples) == 3
    assert samples.answers is samples.targets


@pytest.mark.tasks
def test_it_exports_with_tokens_for_inputs_and_the_last_place_for_outputs(task, tmp_path):
    model = task.model().eval()
    artefact = Artefact.of(task, "text", model, 0)
    path = tmp_path / "model.onnx"
    quantised = to_int8_onnx(artefact, task)
    assert quantised.samples == len(task.test_data(Partition()))
    assert quantised.accuracy == pytest.approx(quantised.float_accuracy, abs=0.1)
    raw = task.loaded.raw[task.held_out[:4]]
    expected = Recognizer.of(artefact).probabilities(raw.numpy())
    for content, tolerance in ((to_onnx(artefact, task), 1e-5), (quantised.content, 0.05)):
        save_onnx(content, path)
        np.testing.assert_allclose(Recognizer.load(path).probabilities(raw.numpy()), expected, atol=tolerance, rtol=0)
