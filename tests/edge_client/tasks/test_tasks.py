import io
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits

from edge_client.tasks import Partition, SampleError, Samples, Task, TaskError, load_task
from edge_client.tasks.digits import DigitsTask, held_out_indices
from edge_client.tasks.partition import dirichlet, iid, natural

TARGETS = np.random.default_rng(0).integers(0, 10, 500)


@given(count=st.integers(1, 8), seed=st.integers(0, 2**32 - 1), alpha=st.floats(0.2, 100))
def test_partitions_are_disjoint_complete_and_reproducible(count, seed, alpha):
    for parts, again in (
        (iid(TARGETS, count, seed), iid(TARGETS, count, seed)),
        (dirichlet(TARGETS, count, alpha, seed), dirichlet(TARGETS, count, alpha, seed)),
    ):
        assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(500))
        assert all(np.array_equal(one, other) for one, other in zip(parts, again, strict=True))
        assert all(len(part) >= 2 for part in parts)


def test_small_alpha_skews_the_labels_and_large_alpha_does_not():
    def skew(alpha):
        parts = dirichlet(TARGETS, 4, alpha, seed=1)
        return np.mean([np.bincount(TARGETS[part], minlength=10).max() / len(part) for part in parts])

    assert skew(0.1) > 2 * skew(1000.0)


def test_a_draw_that_cannot_succeed_ends_with_advice():
    with pytest.raises(ValueError, match="use a larger alpha or fewer devices"):
        dirichlet(TARGETS[:6], 5, 0.01, seed=0)
    with pytest.raises(ValueError, match="500 samples cannot be spread over 251 devices"):
        dirichlet(TARGETS, 251, 1.0, seed=0)


@given(minimum=st.integers(60, 100), seed=st.integers(0, 1000))
def test_every_device_gets_its_minimum(minimum, seed):
    assert min(map(len, dirichlet(TARGETS, 4, 1.0, seed, minimum))) >= minimum


def test_another_seed_draws_other_parts():
    for one, other in (
        (iid(TARGETS, 4, 0), iid(TARGETS, 4, 1)),
        (dirichlet(TARGETS, 4, 1, 0), dirichlet(TARGETS, 4, 1, 1)),
    ):
        assert not np.array_equal(one[0], other[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"index": 4, "count": 4}, "partition 4 does not exist; there are 4"),
        ({"index": -1}, "partition -1"),
        ({"kind": "random"}, "'random' is unknown; known are iid, dirichlet, natural"),
        ({"alpha": 0.0}, "alpha is 0.0"),
        ({"alpha": float("nan")}, "alpha is nan"),
        ({"alpha": float("inf")}, "alpha is inf"),
        ({"count": 0}, "over 0 devices; there must be at least 1"),
        ({"seed": -1}, "seed of a partition is -1"),
    ],
)
def test_impossible_partitions_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        Partition(**arguments)


def test_digits_of_all_devices_are_the_whole_data_set():
    task = DigitsTask()
    parts = [Partition(i, 4, "dirichlet", 0.3, seed=3) for i in range(4)]
    assert sum(len(task.train_data(part)) for part in parts) == 1437
    assert sum(len(task.test_data(part)) for part in parts) == 360
    samples = task.train_data(parts[0])
    assert samples.inputs.shape[1:] == task.input_shape
    assert samples.inputs.dtype == torch.float32
    assert samples.inputs.min() >= -1
    assert samples.inputs.max() <= 1


def test_a_task_without_natural_groups_says_so():
    with pytest.raises(ValueError, match="no natural groups; use the partition iid or dirichlet"):
        DigitsTask().train_data(Partition(0, 4, "natural"))


def test_natural_parts_are_whole_groups_or_shares_of_one():
    groups = np.repeat(np.arange(8), 50)
    for count in (3, 8):
        parts = natural(groups, count, seed=1)
        assert sorted(name for part in parts for name in np.unique(groups[part])) == list(range(8))
    assert all(len(np.unique(groups[part])) == 1 for part in natural(groups, 20, seed=1))
    with pytest.raises(ValueError, match="400 samples in 8 groups cannot be spread over 300 devices"):
        natural(groups, 300, seed=1)


def test_training_and_test_digits_do_not_meet_whatever_the_seed():
    task = DigitsTask()
    for seed in (0, 1):
        train = {tuple(x.flatten().tolist()) for x in task.train_data(Partition(seed=seed)).inputs}
        test = {tuple(x.flatten().tolist()) for x in task.test_data(Partition(seed=seed)).inputs}
        assert len(test) == 360
        assert not train & test


def test_an_image_file_is_prepared_to_the_very_same_input(tmp_path):
    task = DigitsTask()
    inputs = task.test_data(Partition()).inputs
    for index in range(20):
        path = tmp_path / f"{index}.png"
        label = task.save_sample(index, path)
        assert torch.equal(task.prepare(path), inputs[index])
        assert torch.equal(task.prepare(Image.open(path)), inputs[index])
        assert torch.equal(task.prepare(str(path)), inputs[index])
        assert task.true_label(path) == label == str(task.test_data(Partition()).targets[index].item())
    levels = ((inputs[0][0] + 1) * 8).numpy()
    assert torch.equal(task.prepare(levels), inputs[0])


def test_every_held_out_image_is_the_one_of_the_data_set_and_survives_png():
    task, data = DigitsTask(), load_digits()
    assert len(np.unique(held_out_indices())) == 360
    for number, index in enumerate(held_out_indices()):
        image = task.sample_image(number)
        assert (image.mode, image.size) == ("L", (8, 8))
        file = io.BytesIO()
        image.save(file, "PNG")
        assert torch.equal(task.prepare(Image.open(file)), task.prepare(data.images[index]))


@pytest.mark.parametrize("index", [-1, 360])
def test_there_are_360_held_out_images(index):
    with pytest.raises(IndexError, match=f"no held-out digit {index}; there are 360"):
        DigitsTask().sample_image(index)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "LA"])
def test_other_modes_become_gray(mode):
    image = DigitsTask().sample_image(0)
    assert torch.equal(DigitsTask().prepare(image.convert(mode)), DigitsTask().prepare(image))


def test_sixteen_bits_mean_the_same_gray_as_eight():
    image = DigitsTask().sample_image(0)
    deep = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
    assert deep.mode == "I;16"
    assert torch.equal(DigitsTask().prepare(deep), DigitsTask().prepare(image))


def test_damage_in_an_opened_image_is_named(tmp_path):
    files(tmp_path)
    with pytest.raises(SampleError, match=r"cut.png cannot be read"):
        DigitsTask().prepare(Image.open(tmp_path / "cut.png"))
    with pytest.raises(SampleError, match=r"the image cannot be read: conversion from LAB"):
        DigitsTask().prepare(Image.new("LAB", (8, 8)))


def test_the_model_turns_inputs_into_one_score_per_label():
    task = DigitsTask()
    samples = task.test_data(Partition(0, 60))
    model = task.model()
    outputs = model(samples.inputs)
    assert outputs.shape == (6, 10)
    assert [name for name, _ in model.named_children() if hasattr(model.get_submodule(name), "weight")] == [
        "conv1",
        "conv2",
        "hidden",
        "output",
    ]
    right = torch.nn.functional.one_hot(samples.targets, 10).float()
    assert task.correct(right, samples.targets) == 6
    assert task.correct(-right, samples.targets) == 0
    assert task.loss(torch.zeros(6, 10), samples.targets).item() == pytest.approx(np.log(10))


def files(folder):
    Image.new("L", (20, 30)).save(folder / "wrong-size.png")
    (folder / "empty.png").touch()
    (folder / "text.png").write_text("not an image at all")
    noise = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "whole.png")
    (folder / "cut.png").write_bytes((folder / "whole.png").read_bytes()[:70])
    Image.new("1", (5000, 5000)).save(folder / "large.png")
    (folder / "folder.png").mkdir()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.png", "missing.png does not exist"),
        ("empty.png", "empty.png is empty"),
        ("text.png", "text.png is not an image"),
        ("cut.png", "cut.png"),
        ("wrong-size.png", "wrong-size.png is 20 x 30 pixels; the digits task expects 8 x 8"),
        ("large.png", "5000 x 5000 pixels; 16,000,000 are the limit"),
        ("folder.png", "folder.png cannot be read"),
    ],
)
def test_bad_image_files_are_named(tmp_path, name, message):
    files(tmp_path)
    with pytest.raises(SampleError, match=message):
        DigitsTask().prepare(tmp_path / name)


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (np.zeros((8, 9)), r"shape \[8, 9\]"),
        (np.full((8, 8), np.nan), "outside 0 to 16, or NaN"),
        (np.full((8, 8), 17.0), "outside 0 to 16"),
        (np.full((8, 8), "x"), "not real numbers"),
        (np.zeros((8, 8), complex), "not real numbers"),
        (7, "not int"),
    ],
)
def test_bad_arrays_are_named(sample, message):
    with pytest.raises(SampleError, match=message):
        DigitsTask().prepare(sample)


def test_samples_must_fit_their_targets():
    with pytest.raises(ValueError, match="3 inputs do not fit 2 targets"):
        Samples(torch.zeros(3, 1), torch.zeros(2))


class MyTask(DigitsTask):
    name = "mine"


class Unfinished(Task):
    def test_data(self, partition):
        raise NotImplementedError


class Nameless(Task):
    name = "nameless"
    model = train_data = test_data = decode = DigitsTask.model


my_instance = MyTask()
not_a_task = object()


def test_tasks_are_found_by_name_and_by_import_path():
    assert isinstance(load_task("digits"), DigitsTask)
    assert load_task(f"{__name__}:MyTask").name == "mine"
    assert load_task(f"{__name__}:my_instance") is my_instance


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("trees", "task 'trees' is unknown; known are digits, fashion, .*, motion, text, and import paths"),
        ("no.such.module:Task", "module 'no.such.module' cannot be imported"),
        (f"{__name__}:Nothing", "has no 'Nothing'"),
        (f"{__name__}:not_a_task", "'not_a_task' .* is not an edge_client.tasks.Task"),
        (f"{__name__}:Partition", "'Partition' .* is not an edge_client.tasks.Task"),
        (f"{__name__}:Unfinished", "'Unfinished' cannot be created: TypeError: .*train_data"),
        (f"{__name__}:Nameless", "'Nameless' does not set labels, input_shape"),
        (":Task", "is unknown"),
        (".relative:Task", "module '.relative' cannot be imported"),
        ("", "task '' is unknown"),
    ],
)
def test_tasks_that_cannot_be_found_are_named(name, message):
    with pytest.raises(TaskError, match=message):
        load_task(name)


@pytest.mark.parametrize(("source", "message"), [("1 / 0", "ZeroDivisionError"), ("def (", "SyntaxError")])
def test_a_users_module_that_fails_is_named(tmp_path, monkeypatch, source, message):
    (tmp_path / "broken_task.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(TaskError, match=f"'broken_task' cannot be imported: {message}"):
        load_task("broken_task:MyTask")
    assert "broken_task" not in sys.modules
