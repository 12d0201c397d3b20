"""The average of the iterates on several devices: the same bits on all, whatever becomes of them in a session."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from local_devices import DEVICES, Session, assert_close, model, of_weights, take

from coordinator.serving.server import embedded_coordinator
from coordinator.session.settings import SessionSettings
from edge_client import EveryBatch, GradientExchange, IterateAverage, LocalCurvature, NewtonOptimizer
from edge_client.exchange import ExchangeError
from edge_client.sync.replica import tensors_digest


def averaged(trained, optimizer):
    with optimizer.averaged():
        return of_weights(trained)


def averages(devices):
    """Return the digests of the averages; buffers, in the midst of a round, are each device's own."""
    return {
        tensors_digest(
            {name: averaged(device.model, device.optimizer)[name] for name, _ in device.model.named_parameters()}
        )
        for device in devices
    }


def train_together(plans, *, steps=7, spoils=None, **options):
    """Train on devices at once, which exchange after every batch; return the models, with the optimizers."""
    models = [model() for _ in plans]

    def train(address, number):
        with GradientExchange.connect(address, session="s", device=f"d{number}") as exchange:
            optimizer = NewtonOptimizer(models[number], sync=plans[number](exchange), **options)
            for step in range(steps):
                if spoils == (number, step):
                    with torch.no_grad():
                        models[number][0].weight.add_(0.1)
                        optimizer._average._averages["0.weight"].add_(0.1)
                take(optimizer, number)
            optimizer.synchronise()
            return optimizer

    with embedded_coordinator() as coordinator, ThreadPoolExecutor(len(plans)) as pool:
        settings = SessionSettings(devices=len(plans), rejoin_deadline_s=30, digest_every=2, codec="fp32")
        coordinator.create_session("s", settings)
        runs = [pool.submit(train, coordinator.address, number) for number in range(len(plans))]
        return list(zip(models, [run.result(60) for run in runs], strict=True))


@pytest.mark.parametrize("plan", [EveryBatch, lambda exchange: LocalCurvature(exchange, sync_every=3)])
def test_devices_that_exchange_after_every_batch_end_with_the_same_average(plan):
    states = [averaged(trained, optimizer) for trained, optimizer in train_together([plan, plan])]
    for name in states[0]:
        assert torch.equal(states[0][name], states[1][name]), name


def test_whoever_heals_has_the_average_of_the_others():
    devices = train_together([EveryBatch] * 3, spoils=(1, 4), steps=9)
    states = [averaged(trained, optimizer) for trained, optimizer in devices]
    assert len({tensors_digest(state) for state in states}) == 1


def test_devices_that_average_otherwise_are_refused():
    with Session(devices=2, join_deadline_s=5) as session:
        session.device(0).optimizer.join()
        with pytest.raises(ExchangeError, match="averaging"):
            session.device(1, averaging=IterateAverage(0.9)).optimizer.join()


@pytest.mark.parametrize("overlap", [False, True])
def test_local_steps_average_what_all_have_in_common(overlap):
    with Session() as session:
        devices = [session.device(number, overlap=overlap) for number in range(DEVICES)]
        session.all(lambda device: device.train(9))
        assert len(averages(devices)) == 1
        anchors = [anchor for _, anchor in devices[0].seen[overlap:]]  # with overlap the first is what all began with
        names = [name for name, _ in devices[0].model.named_parameters()]
        average = {name: anchors[0][name].double() for name in names}
        for number, anchor in enumerate(anchors[1:], start=1):
            kept = (1 - 9 / (10 + 2 * number)) * (1 - 9 / (11 + 2 * number))
            average = {name: kept * value + (1 - kept) * anchor[name] for name, value in average.items()}
        of_model = averaged(devices[0].model, devices[0].optimizer)
        assert_close(average, {name: of_model[name].double() for name in average}, rtol=1e-5, atol=1e-6)
        session.all(lambda device: device.optimizer.synchronise())
        assert len(averages(devices)) == 1


def test_whoever_comes_late_has_the_average_of_the_others():
    with Session(devices=2, max_devices=3, rejoin_deadline_s=30) as session:
        for number in range(2):
            session.device(number)
        session.all(lambda device: device.train(4))
        late = session.device(2, trained=model(seed=9))
        last = session.let_in(late, 4)
        session.all(lambda device: device.train(last + 4))
        assert len(averages(session.devices)) == 1
        assert {device.optimizer._average.count for device in session.devices} == {last + 4}


def test_restarted_devices_go_on_by_the_same_bits():
    def run(at):
        with Session(rejoin_deadline_s=30) as session:
            for number in range(DEVICES):
                session.device(number)
            if at is not None:
                session.all(lambda device: device.train(at))
                session.restart()
            session.all(lambda device: device.train(8))
            return averages(session.devices)

    whole = run(None)
    assert len(whole) == 1
    assert run(5) == whole
