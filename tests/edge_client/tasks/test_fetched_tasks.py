"""The tasks on their real data, where these were fetched (`edge-client fetch all`)."""

import warnings

import pytest
import torch

from edge_client.curvature.layers import supported_layer
from edge_client.inference import Artefact, Recognizer
from edge_client.tasks import TASKS, Partition, load_task
from edge_client.tasks.packages import PackagedTask
from edge_client.training.settings import parse_settings
from edge_client.training.trainer import Trainer

pytestmark = pytest.mark.tasks
SIZES = {
    "fashion": (60_000, 10_000, 147_066),
    "fashion-groupnorm": (60_000, 10_000, 147_066),
    "fashion-lora": (30_000, 5_000, 28_997),
    "fashion-vit": (60_000, 10_000, 138_890),
    "languages": (3_408, 962, 79_845),
    "leaves": (200, 242, 27_174),
    "text": (32_976, 4_028, 82_528),
}
"""Training samples, held-out samples, and numbers that are trained."""
FILES = {"languages": "sample.wav", "leaves": "sample.csv", "text": "sample.txt"}


@pytest.fixture(scope="module", params=[name for name in TASKS if isinstance(load_task(name), PackagedTask)])
def task(request):
    found = load_task(request.param)
    if not found.is_fetched:
        pytest.skip(f"the data of {request.param} were not fetched: edge-client fetch {request.param}")
    return found


def test_its_samples_are_spread_over_devices_and_the_held_out_ones_apart(task):
    train, test, parameters = SIZES[task.name]
    parts = [task.train_data(Partition(index, 8)) for index in range(8)]
    assert sum(map(len, parts)) == train
    assert len(task.test_data(Partition())) == test
    assert parts[0].inputs.shape[1:] == task.input_shape
    assert sum(p.numel() for p in task.model().parameters() if p.requires_grad) == parameters


def test_the_loss_falls_in_a_few_steps_and_every_layer_has_curvature(task):
    settings = parse_settings([f"task={task.name}", "batch-size=16", "partition=iid"])
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # such as one that names layers without curvature
        trainer = Trainer(settings, count=8)
        before = trainer.evaluate()
        trainer.train(20)
    after = trainer.evaluate()
    assert after.loss < 0.93 * before.loss, (before, after)
    supported = [m for name, m in trainer.model.named_modules() if supported_layer(name, m) is not None]
    with_curvature = {id(p) for module in supported for p in module.parameters()}
    assert all(id(p) in with_curvature for p in trainer.model.parameters() if p.requires_grad)


def test_synthetic_inputs_give_two_devices_the_same_curvature(task):
    trainer = Trainer(parse_settings([f"task={task.name}", "batch-size=16", "curvature-scope=probe"]), count=8)
    trainer.train(1)
    twin = Trainer(parse_settings([f"task={task.name}", "batch-size=16", "curvature-scope=probe"]), count=8)
    twin.train(1)
    for one, other in zip(trainer.model.parameters(), twin.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_file_is_recognised_as_the_held_out_sample_that_it_is(task, tmp_path):
    path = tmp_path / FILES.get(task.name, "sample.png")
    label = task.save_sample(5, path)
    assert label in task.labels
    place = task.held_out[5]
    expected = task.preprocess(task.loaded.raw[place].unsqueeze(0))[0]
    torch.testing.assert_close(task.prepare(path).float(), expected.float(), atol=0.05, rtol=0)
    (prediction,) = Recognizer.of(Artefact.of(task, task.name, task.model(), 0)).predict([path])
    assert prediction.label in task.labels


def test_no_prompt_of_languages_is_both_heard_and_held_out():
    task = load_task("languages")
    if not task.is_fetched:
        pytest.skip("the data of languages were not fetched: edge-client fetch languages")
    tensors = task.tensors()
    is_out, prompts = tensors["is_held_out"], tensors["prompts"]
    assert not set(prompts[is_out].tolist()) & set(prompts[~is_out].tolist())
