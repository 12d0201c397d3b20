"""Eight passes on one model are what eight devices would do."""

import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from edgenewton.v1.codecs import CodecChoice
from torch import nn

from benchmarks.frontier.lockstep import LockstepExchange, Meeting
from benchmarks.long.ours import NewtonTraining
from benchmarks.long.union_gradient import DivergedError, UnionGradient
from edge_client import EveryBatch, NewtonOptimizer
from edge_client.tasks import load_task

DEVICES, SAMPLES, STEPS = 2, 8, 25


def convolutional(*norms: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3), *norms, nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 10)]
    return nn.Sequential(*layers)


def batches(step: int, devices: int = DEVICES):
    generator = torch.Generator().manual_seed(step)
    return [
        (torch.randn(SAMPLES, 1, 8, 8, generator=generator), torch.randint(10, (SAMPLES,), generator=generator))
        for _ in range(devices)
    ]


def test_the_gradient_is_that_of_the_union():
    model, whole = convolutional(), convolutional()
    given = batches(0)

    loss = UnionGradient(model, nn.functional.cross_entropy).add(given)

    inputs, targets = (torch.cat(parts) for parts in zip(*given, strict=True))
    of_union = nn.functional.cross_entropy(whole(inputs), targets)
    of_union.backward()
    assert loss == pytest.approx(of_union.item(), rel=1e-5)
    for mine, theirs in zip(model.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)


def test_each_device_has_its_own_batch_statistics():
    model = convolutional(nn.BatchNorm2d(4))
    given = batches(0)
    own = []
    for device in range(DEVICES):
        alone = convolutional(nn.BatchNorm2d(4))
        UnionGradient(alone, nn.functional.cross_entropy).add([given[device]])
        own.append(alone)

    UnionGradient(model, nn.functional.cross_entropy).add(given)

    mean = (own[0][1].running_mean + own[1][1].running_mean) / 2
    torch.testing.assert_close(model[1].running_mean, mean)
    assert model[1].num_batches_tracked == 1
    gradient = (own[0][0].weight.grad + own[1][0].weight.grad) / 2
    torch.testing.assert_close(model[0].weight.grad, gradient)


def test_a_loss_that_is_not_finite_ends_the_training():
    given = batches(0)
    given[1][0].fill_(math.inf)

    with pytest.raises(DivergedError, match="device 1"):
        UnionGradient(convolutional(), nn.functional.cross_entropy).add(given)


def test_ours_on_one_model_take_the_steps_of_two_devices_that_exchange():
    task = load_task("digits")
    lockstep = NewtonTraining(convolutional(), task, "kfac", {})
    meeting = Meeting(DEVICES, CodecChoice("fp32"))
    models = [convolutional() for _ in range(DEVICES)]
    optimizers = [
        NewtonOptimizer(model, sync=EveryBatch(LockstepExchange(meeting, index))) for index, model in enumerate(models)
    ]

    def train(index: int, step: int) -> None:
        try:
            optimizers[index].zero_grad()
            inputs, targets = batches(step)[index]
            task.loss(models[index](inputs), targets).backward()
            optimizers[index].step()
        except BaseException:
            meeting.abort()
            raise

    with ThreadPoolExecutor(DEVICES) as pool:
        for step in range(STEPS):  # through the warm-up, and the first steps that have no curvature of their own
            lockstep.add_gradient(batches(step))
            lockstep.step()
            for running in [pool.submit(train, index, step) for index in range(DEVICES)]:
                running.result()

    begun = convolutional()
    for start, mine, theirs in zip(
        begun.parameters(), lockstep.model.parameters(), models[0].parameters(), strict=True
    ):
        assert (mine - theirs).norm() < 1e-3 * (theirs - start).norm()
