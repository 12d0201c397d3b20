import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.io import wavfile
from scipy.signal import resample as fourier_resample
from typer.testing import CliRunner

from edge_client.cli import app
from edge_client.inference import Recognizer
from edge_client.tasks import Partition, SampleError, TaskError, keywords, load_task
from edge_client.tasks.audio import Recording
from edge_client.tasks.cache import ENVIRONMENT
from edge_client.tasks.keyword_clips import Recipe, load_clips
from edge_client.tasks.keywords import KeywordsTask
from edge_client.tasks.log_mel import LogMel
from edge_client.tasks.speech import speak

SMALL = Recipe(words=("yes", "stop"), accents=("en", "en-US"), voices=("m3", "f1"), held_out=("f1",))


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A cache folder of this module's own, so that the clips are made here and no older ones are met."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(ENVIRONMENT, str(folder))
        keywords._clips.cache_clear()
        yield folder
    keywords._clips.cache_clear()


@pytest.fixture(scope="module")
def task(kept):
    return load_task("keywords")


@pytest.fixture(scope="module")
def model(task, kept):
    """A model that the command line has trained: path and what it printed."""
    path = kept / "model.pt"
    settings = ["task=keywords", "steps=20", "batch-size=64", "partition=iid"]
    result = CliRunner().invoke(
        app, ["train", *[word for setting in settings for word in ("-c", setting)], "--output", str(path)]
    )
    assert result.exit_code == 0, result.output
    return path, result.output


def test_clips_are_every_word_in_every_accent_by_every_voice_twice(task):
    train, test = task.train_data(Partition()), task.test_data(Partition())
    assert train.inputs.shape == (2_240, *task.input_shape)
    assert test.inputs.shape == (640, *task.input_shape)
    assert train.targets.bincount().tolist() == [224] * 10
    assert test.targets.bincount().tolist() == [64] * 10
    for samples in (train, test):
        assert samples.inputs.dtype == torch.float32
        assert samples.inputs.min() == -1
        assert (samples.inputs.flatten(1).amax(dim=1) == 1).all()


def test_no_held_out_voice_is_trained_on():
    recipe = Recipe()
    assert len(recipe.voices) == len(set(recipe.voices)) == 18
    assert set(recipe.held_out) < set(recipe.voices)
    voices = np.array([utterance.voice.partition("+")[2] for utterance in recipe.utterances()])
    clips = keywords._clips()
    assert np.array_equal(np.isin(voices, recipe.held_out), clips.is_held_out.numpy())


@pytest.mark.parametrize("kind", ["iid", "dirichlet", "natural"])
@pytest.mark.parametrize("count", [1, 4, 11])
def test_partitions_hold_every_clip_once(task, kind, count):
    parts = [Partition(index, count, kind, 1.0, seed=5) for index in range(count)]
    for data, total in ((task.train_data, 2_240), (task.test_data, 640)):
        pictures = torch.cat([data(part).inputs for part in parts])
        assert len({hashable.numpy().tobytes() for hashable in pictures}) >= 0.99 * total
        assert len(pictures) == total


def test_the_natural_partition_gives_each_device_accents_of_its_own(task):
    clips = keywords._clips()
    accents = {
        picture.numpy().tobytes(): int(accent) for picture, accent in zip(clips.inputs, clips.accents, strict=True)
    }
    heard = [
        {accents[picture.numpy().tobytes()] for picture in task.train_data(Partition(i, 4, "natural")).inputs}
        for i in range(4)
    ]
    assert [len(part) for part in heard] == [2, 2, 2, 2]
    assert set.union(*heard) == set(range(8))


def test_a_saved_clip_is_prepared_to_the_held_out_input(task, tmp_path):
    test = task.test_data(Partition())
    for index in range(0, 640, 40):
        label = task.save_sample(index, tmp_path / "a.wav")
        assert task.true_label(tmp_path / "a.wav") == label == task.labels[test.targets[index]]
        for sample in (tmp_path / "a.wav", str(tmp_path / "a.wav"), (tmp_path / "a.wav").read_bytes()):
            assert torch.allclose(task.prepare(sample), test.inputs[index], atol=1e-4)
    for index in (-1, 640):
        with pytest.raises(IndexError, match=f"no held-out clip {index}; there are 640"):
            task.save_sample(index, tmp_path / "b.wav")


def test_the_command_line_trains_a_model_that_knows_voices_it_never_heard(model):
    _, output = model
    right = int(output.split(" of 640 held-out")[0].rpartition("(")[2])
    assert right > 576


def test_the_command_line_recognises_wav_files(model, task, tmp_path):
    paths = [tmp_path / f"{index}.wav" for index in range(0, 640, 64)]
    labels = [task.save_sample(64 * number, path) for number, path in enumerate(paths)]
    predictions = Recognizer.load(model[0]).predict(paths)
    assert sum(p.label == label for p, label in zip(predictions, labels, strict=True)) >= 8
    result = CliRunner().invoke(app, ["predict", str(model[0]), *map(str, paths)], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    rows = [line.split("│")[1:5] for line in result.output.splitlines() if ".wav" in line]
    assert [[cell.strip() for cell in (row[1], row[3])] for row in rows] == [
        [prediction.label, label] for prediction, label in zip(predictions, labels, strict=True)
    ]
    missing = CliRunner().invoke(app, ["predict", str(model[0]), str(tmp_path / "missing.wav")])
    assert missing.exit_code == 1
    assert "missing.wav does not exist" in missing.output


@pytest.mark.parametrize("rate", [11_025, 16_000, 44_100, 48_000])
def test_a_word_is_recognised_at_any_rate_level_and_place(model, task, tmp_path, rate):
    recognizer = Recognizer.load(model[0])
    right = 0
    for index in range(0, 640, 32):
        label = task.save_sample(index, tmp_path / "a.wav")
        old_rate, samples = wavfile.read(tmp_path / "a.wav")
        values = fourier_resample(samples / 32_768, len(samples) * rate // old_rate)
        wavfile.write(tmp_path / "b.wav", rate, (0.1 * np.pad(values, (rate, rate // 2))).astype(np.float32))
        right += recognizer.predict([tmp_path / "b.wav"])[0].label == label
    assert right >= 17


def test_recognition_needs_no_espeak(model, task, tmp_path, monkeypatch):
    task.save_sample(0, tmp_path / "a.wav")
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path))
    keywords._clips.cache_clear()
    assert Recognizer.load(model[0]).predict([tmp_path / "a.wav"])[0].label in task.labels
    with pytest.raises(TaskError, match=r"pip install edgenewton\[speech\]"):
        task.train_data(Partition())
    result = CliRunner().invoke(app, ["train", "-c", "task=keywords"])
    assert result.exit_code == 1
    assert "pip install edgenewton[speech]" in result.output


def test_arrays_are_taken_with_their_rate_or_as_16_khz(task):
    tone = np.sin(np.arange(16_000) / 5) * np.hanning(16_000)
    expected = task.prepare(tone)
    assert expected.shape == task.input_shape
    assert torch.equal(task.prepare(Recording(tone, 16_000)), expected)
    pcm = (tone * 32_767).astype(np.int16)
    assert torch.allclose(task.prepare(np.stack([pcm, pcm], axis=1)), expected, atol=0.02)
    assert not torch.allclose(task.prepare(Recording(tone, 8_000)), expected, atol=0.02)
    with pytest.raises(SampleError, match="not int"):
        task.prepare(7)
    assert task.true_label(tone) is None


def test_preprocessing_is_the_log_mel_front_end(task):
    tone = np.sin(np.arange(16_000) / 5)
    assert torch.allclose(LogMel(16_000)(task.decode(tone).unsqueeze(0))[0], task.prepare(tone))


def test_the_model_is_small_and_gives_one_score_per_word():
    task = KeywordsTask()
    model = task.model()
    assert sum(parameter.numel() for parameter in model.parameters()) == 67_210
    assert model(torch.zeros(3, *task.input_shape)).shape == (3, 10)


def test_clips_do_not_depend_on_who_makes_them_or_when(task, tmp_path, monkeypatch):
    made = []
    for name in ("a", "b"):
        monkeypatch.setenv(ENVIRONMENT, str(tmp_path / name))
        made.append(load_clips(SMALL, task.prepare, "tests"))
    assert torch.equal(made[0].inputs, made[1].inputs)
    assert torch.equal(made[0].samples, made[1].samples)
    assert made[0].words.tolist() == [0, 0, 1, 1] * 4
    assert made[0].accents.tolist() == [0, 0, 0, 0, 1, 1, 1, 1] * 2
    assert made[0].held_out.tolist() == list(range(8, 16))
    assert torch.equal(task.prepare(made[0].recording(3)), made[0].inputs[11])


def test_every_voice_speaks_the_same_in_every_process():
    utterances = replace(Recipe(), takes=1).utterances()
    for utterance, one, other in zip(utterances, speak(utterances), speak(utterances), strict=True):
        assert np.array_equal(one.samples, other.samples), utterance


def test_another_recipe_or_preparation_has_a_file_of_its_own(task, tmp_path, monkeypatch):
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path))
    for recipe, preparation in ((SMALL, "one"), (SMALL, "two"), (replace(SMALL, seed=1), "one"), (SMALL, "one")):
        load_clips(recipe, task.prepare, preparation)
    assert len(list(tmp_path.glob("keywords-*.safetensors"))) == 3
