"""Devices that train together, as threads with a real coordinator over gRPC, and what the coordinator sees of them."""

import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache

import torch
from edgenewton.v1.tensor_spec import TensorSpec
from torch import Tensor, nn

from benchmarks.privacy.modes import Mode
from benchmarks.privacy.observed import Watch
from coordinator.serving.server import embedded_coordinator
from coordinator.session.settings import SessionSettings
from edge_client import GradientExchange, NewtonOptimizer
from edge_client.curvature.whitening import Whitening
from edge_client.exchange import TensorKey
from edge_client.sync.every_batch import EveryBatch
from edge_client.tasks import Partition, Samples, Task, load_task
from edge_client.tasks.data import in_memory

DEVICES = 8
SESSION = "watched"


class _Mlp(nn.Sequential):
    """A plain network for the digits' images: one hidden layer of 128 (9,610 parameters)."""

    def __init__(self) -> None:
        super().__init__()
        layers = {
            "flatten": nn.Flatten(),
            "hidden": nn.Linear(64, 128),
            "relu": nn.ReLU(),
            "output": nn.Linear(128, 10),
        }
        for name, layer in layers.items():
            self.add_module(name, layer)


@cache
def digits() -> Task:
    """Return the task of the digits demo."""
    return load_task("digits")


NETWORKS: Mapping[str, Callable[[], nn.Module]] = {"demo CNN": lambda: digits().model(), "MLP": _Mlp}
"""The digits demo's network, and one whose first layer sees the pixels themselves."""


@cache
def images() -> Samples:
    """Return all images that are trained with, in an order of their own."""
    whole = in_memory(digits(), digits().train_data(Partition()))
    order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(0))
    return Samples(whole.inputs[order], whole.targets[order])


def mean_image() -> Tensor:
    """Return the mean of all images, `[1, 8, 8]`: what is guessed by who sees nothing of a device."""
    return images().inputs.mean(0)


def make(network: str, seed: int = 0) -> nn.Module:
    """Return a network with weights that follow from a seed."""
    torch.manual_seed(seed)
    return NETWORKS[network]()


def be_quiet() -> None:
    """Take one thread in this process, and do not warn of keys that nobody vouches for, once for each device."""
    torch.set_num_threads(1)
    logging.getLogger("edge_client").setLevel(logging.ERROR)


@dataclass
class Run:
    """A session, as its coordinator saw it, and what is needed to judge what can be read from that."""

    mode: Mode
    batch: int
    watch: Watch
    model: nn.Module
    """With the weights that all devices had before the attacked step: the coordinator knows them."""
    initial: nn.Module
    """With those that they began with."""
    trained: nn.Module
    """With those at the end."""
    averaged: nn.Module
    """With the average of those that it had, which is what is used."""
    step: int
    """That is attacked."""
    fingerprint: tuple[TensorSpec, ...] = ()
    whitening: dict[str, Whitening] = field(default_factory=dict)
    """Of the layers in that step: it follows from means that the coordinator made itself."""
    bytes: int = 0
    """Of all devices, in both directions."""

    def images_of(self, device: int) -> Samples:
        """Return the samples of which a device's contribution to the attacked step is."""
        first = self.step * self.mode.batches
        parts = [batch_of(device, first + number, self.batch) for number in range(self.mode.batches)]
        return Samples(torch.cat([p.inputs for p in parts]), torch.cat([p.targets for p in parts]))

    def seen_of(self, device: int) -> dict[TensorKey, Tensor]:
        """Return what the coordinator saw of a device in the attacked step."""
        return self.watch.tensors(f"d{device}", self.step)

    def sums(self) -> dict[TensorKey, Tensor]:
        """Return the means of that step, where they are all that is known."""
        return self.watch.sums(self.step)

    def at_first(self) -> "Run":
        """Return the same with the first step as the one that is attacked: its sum is not rounded to few bits."""
        return replace(self, model=self.initial, step=0, whitening={})


def batch_of(device: int, number: int, size: int) -> Samples:
    """Return a device's batch; a device has an eighth of all images, and begins anew after the last."""
    whole = images()
    own = len(whole) // DEVICES
    indices = device * own + (number * size + torch.arange(size)) % own
    return Samples(whole.inputs[indices], whole.targets[indices])


def watched_run(mode: Mode, network: str, batch: int, devices: int = DEVICES) -> Run:
    """Train until the attacked step is over, and return what was seen."""
    steps = (mode.attacked_step + 1) * mode.batches
    return watched_training(mode, lambda: make(network), lambda d, n: batch_of(d, n, batch), batch, steps, devices)


def watched_training(
    mode: Mode,
    network: Callable[[], nn.Module],
    batches: Callable[[int, int], Samples],
    batch: int,
    steps: int,
    devices: int = DEVICES,
) -> Run:
    """Train devices together for some batches each, and return what was seen.

    Args:
        mode: of the session.
        network: makes the model, with the same weights each time.
        batches: returns a device's batch of a number.
        batch: its samples.
        steps: batches of each device.
        devices: how many.

    """
    models = [network() for _ in range(devices)]  # torch's seed belongs to all threads
    with embedded_coordinator() as coordinator:
        settings = {"devices": devices, "step_deadline_s": 120, "lease_s": 120, **mode.settings}
        coordinator.create_session(SESSION, SessionSettings.model_validate(settings))
        room = coordinator.directory.find(SESSION)
        run = Run(mode, batch, Watch(room), network(), network(), network(), network(), mode.attacked_step)

        def train(device: int) -> int:
            with GradientExchange.connect(coordinator.address, session=SESSION, device=f"d{device}") as exchange:
                plan = mode.plan(exchange, digits(), images().inputs[device::DEVICES])
                optimizer = NewtonOptimizer(models[device], sync=plan)
                for step in range(steps):
                    if device == 0 and step == mode.attacked_step * mode.batches:
                        run.model.load_state_dict(models[0].state_dict())
                        if isinstance(plan, EveryBatch):
                            run.whitening = dict(plan._common._whitening)
                    samples = batches(device, step)
                    optimizer.zero_grad()
                    loss = digits().loss(models[device](samples.inputs), samples.targets)
                    loss.backward()  # type: ignore[no-untyped-call]
                    optimizer.report(loss.item())
                    optimizer.step()
                optimizer.synchronise()
                if device == 0:
                    with optimizer.averaged():
                        run.averaged.load_state_dict(models[0].state_dict())
                return exchange.traffic.sent + exchange.traffic.received

        with ThreadPoolExecutor(devices) as pool:
            run.bytes = sum(done.result() for done in [pool.submit(train, device) for device in range(devices)])
        run.fingerprint = room.session.fingerprint
        run.trained.load_state_dict(models[0].state_dict())
    return run
