"""The baselines over the real exchange do what the frontier benchmark simulates, where nothing is compressed."""

from concurrent.futures import ThreadPoolExecutor
from multiprocessing import Pipe

import pytest
import torch

from benchmarks.convergence.trials import learning_task
from benchmarks.frontier.methods import METHODS
from benchmarks.links.configuration import OURS, Configuration
from benchmarks.links.packing import Packing
from benchmarks.links.processes import DeviceJob, make_device
from benchmarks.links.snapshots import Record, SnapshotWriter, put_weights, read_snapshots
from coordinator.serving.server import embedded_coordinator
from coordinator.session.settings import SessionSettings
from edge_client.exchange.remote import GradientExchange

BATCHES = 4


def trained(what, batches=BATCHES):
    with embedded_coordinator() as coordinator:
        coordinator.create_session("s", SessionSettings(codec=what.codec.name, digest_every=1))

        def train(index):
            device = devices[index]
            with GradientExchange.connect(coordinator.address, session="s", device=f"device-{index}") as exchange:
                device.join(exchange)
                results = [device.train_batch() for _ in range(batches)]
            return device.model, [result for result in results if result is not None]

        task = learning_task("digits")
        # One after the other: the seed of the weights is the whole process's.
        devices = [make_device(DeviceJob(index, "", "digits", what, 0, batches), task) for index in range(4)]
        with ThreadPoolExecutor(4) as pool:
            return list(pool.map(train, range(4)))


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("SGD, fp32", {"lr": 0.05, "momentum": 0.9}),
        ("FedAvgM, fp32", {"lr": 0.05, "steps": 2, "outer_lr": 0.7, "outer_momentum": 0.5}),
        ("DiLoCo, fp32", {"lr": 0.005, "steps": 2, "outer_lr": 0.7, "outer_momentum": 0.6}),
    ],
)
def test_a_baseline_agrees_with_its_simulation(method, options):
    torch.manual_seed(0)
    task = learning_task("digits")
    simulated = next(m for m in METHODS if m.name == method).start(task.build(), task, options, 0)
    batches = 0
    while batches < BATCHES:
        batches += simulated.round().batches

    devices = trained(Configuration(method, options))

    assert {len(results) for _, results in devices} == {BATCHES // options.get("steps", 1)}
    for model, _ in devices:
        for mine, theirs in zip(model.parameters(), simulated.model.parameters(), strict=True):
            torch.testing.assert_close(mine, theirs, atol=2e-5, rtol=1e-4)


def test_ours_exchanges_with_others():
    devices = trained(OURS, batches=12)  # the session begins with rounds of ten
    assert all(result.devices == 4 for _, results in devices for result in results)
    assert all(results for _, results in devices)


def test_small_tensors_travel_together_and_come_back():
    tensors = {"bias": torch.arange(3.0), "weight": torch.ones(64, 64), "scale": torch.full((2, 2), 7.0)}
    packing = Packing("delta", tensors)
    packed = packing.pack(tensors)
    assert [(spec.kind, spec.name) for spec in packing.specs()] == list(packed)
    assert {name: spec.shape for (_, name), spec in zip(packed, packing.specs(), strict=True)} == {
        "weight": (64, 64),
        "small tensors": (7,),
    }
    for name, tensor in packing.unpack(packed).items():
        assert torch.equal(tensor, tensors[name])


def test_a_judge_gets_the_weights_that_were_handed_in():
    reader, writer = Pipe(duplex=False)
    model, other = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    snapshots = SnapshotWriter(writer)
    snapshots.write(Record(1.5, 1.0, 10, 1, 100.0), model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        model.weight.zero_()
    snapshots.close()
    (snapshot,) = read_snapshots(reader)
    put_weights(other, snapshot.weights)
    assert snapshot.record.batches == 10
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())
