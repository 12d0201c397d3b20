"""What must hold of the task, whatever its data are."""

import pytest
import torch
from flower_app.task import FlowerAppTask

from edge_client import NewtonOptimizer
from edge_client.tasks import Partition, SampleError

STEPS = 40
BATCH = 32


def test_devices_share_the_data_out():
    task = FlowerAppTask()
    shares = [task.train_data(Partition(index, 2)) for index in range(2)]
    everything = task.train_data(Partition())
    assert sum(len(share) for share in shares) == len(everything)
    assert everything.inputs.shape[1:] == task.input_shape


def test_it_learns():
    torch.manual_seed(0)
    task = FlowerAppTask()
    model, data, held_out = task.model(), task.train_data(Partition()), task.test_data(Partition())
    optimizer = NewtonOptimizer(model)
    for _ in range(STEPS):
        batch = torch.randint(len(data), (BATCH,))
        optimizer.zero_grad()
        task.loss(model(data.inputs[batch]), data.targets[batch]).backward()
        optimizer.step()
    with torch.inference_mode(), optimizer.averaged():
        correct = task.correct(model(held_out.inputs), held_out.targets)
    assert correct / len(held_out) > 0.9


@pytest.mark.parametrize("sample", [[1.0], b"1,2\n3,4\n", b"", None, "no-such-file.csv"])
def test_what_is_no_sample_is_refused(sample):
    with pytest.raises(SampleError):
        FlowerAppTask().decode(sample)
