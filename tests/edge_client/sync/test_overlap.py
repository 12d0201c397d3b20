"""Local steps of the next round while the mean of one is on its way, against the same computed plainly."""

import copy
import threading
import time
from itertools import cycle

import pytest
import torch
from edgenewton.v1.forms import Form
from local_devices import (
    DEVICES,
    SCOPES,
    Device,
    Session,
    assert_close,
    assert_equal,
    averaged,
    left_over,
    left_over_of,
    model,
    moves_sent,
    of_weights,
    plain_model,
    samples_of,
    take,
    wide_model,
)

from coordinator.session.cadence import Cadence
from edge_client import EveryBatch, GradientExchange, NewtonOptimizer
from edge_client.exchange import ExchangeError
from edge_client.sync import LocalSteps, Outer
from edge_client.sync.replica import tensors_digest, weights_digest
from edge_client.training.run import train_in_session
from edge_client.training.settings import TrainSettings

TOTAL = sum(map(samples_of, range(DEVICES)))
WAIT_S = 30


def devices_of(session, count=DEVICES, make=model, **options):
    return [session.device(number, trained=make(), overlap=True, **options) for number in range(count)]


def end(device):
    device.optimizer.synchronise()


def digests(devices):
    return {tensors_digest(averaged(of_weights(device.model))) for device in devices}


def wait_until_over(device, step):
    """Wait until a device has heard of a step's end."""
    place = device.plan._membership
    with place._link._changed:
        assert place._link._changed.wait_for(lambda: place.has_committed(step), WAIT_S)


# ---------------------------------------------------------------- what it computes


@pytest.mark.parametrize(("every", "lr", "momentum"), [(3, 0.7, 0.6), (1, 0.7, 0.6), (3, 1.0, 0.0), (2, 0.5, 0.0)])
def test_rounds_are_those_of_a_plain_computation(every, lr, momentum):
    rounds = 5
    with Session() as session:
        devices = devices_of(session, make=plain_model, every=every, outer=Outer(lr, momentum))
        session.all(lambda device: device.train(every * rounds))
        assert_equal(devices, rounds=rounds)
        assert [step for step, _ in devices[0].seen] == [every * number for number in range(rounds)]
        ahead = [of_weights(device.model) for device in devices]
        session.all(end)
        assert len(digests(devices)) == 1
        anchors = [anchor for _, anchor in devices[0].seen] + [of_weights(devices[0].model)]

    anchor = of_weights(plain_model())
    velocity = {name: torch.zeros_like(tensor) for name, tensor in anchor.items()}
    alone = [NewtonOptimizer(plain_model()) for _ in range(DEVICES)]
    sent, began = None, [anchor] * DEVICES

    def outer_step(moves):
        """Return the next anchor."""
        after = {}
        for name, before in anchor.items():
            mean = sum(samples_of(i) * move[name] for i, move in enumerate(moves)) / TOTAL
            velocity[name] = momentum * velocity[name] + mean
            after[name] = before + lr * (mean + momentum * velocity[name])
        return after

    for number in range(rounds):
        own = []
        for i, optimizer in enumerate(alone):
            optimizer._model.load_state_dict(began[i])
            for _ in range(every):
                take(optimizer, i)
            own.append({name: tensor - began[i][name] for name, tensor in of_weights(optimizer._model).items()})
        if sent is not None:
            anchor = outer_step(sent)
        assert_close(anchors[number], anchor, rtol=1e-3, atol=1e-5)
        anchor = anchors[number]  # rounding is not to add up
        began = [{name: anchor[name] + move[name] for name in anchor} for move in own]
        sent = own
    for weights, expected in zip(ahead, began, strict=True):
        assert_close(weights, expected, rtol=1e-3, atol=1e-4)
    assert_close(anchors[-1], outer_step(sent), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("codec", ["fp32", "int4", "sparse4"])
def test_anchors_are_identical_after_every_exchange(scope, codec):
    with Session(codec=codec, topk_fraction=0.1, digest_every=1) as session:
        devices = devices_of(session, scope=SCOPES[scope])
        session.all(lambda device: device.train(13))
        assert [step for step, _ in devices[0].seen] == [0, 2, 4, 6, 8, 10]
        for device in devices:
            device.seen = [(step, averaged(anchor)) for step, anchor in device.seen]
        assert_equal(devices)
        assert len(digests(devices)) == DEVICES
        session.all(end)
        assert {device.optimizer.current_step for device in devices} == {13}
        assert len(digests(devices)) == 1
        assert all(tensor.isfinite().all() for tensor in devices[0].model.state_dict().values())


def test_a_run_is_repeated_to_the_last_bit():
    def run(slow):
        with Session(codec="int4") as session:
            devices = devices_of(session, every=1, scope=SCOPES["blend of a measured probe"])
            delay = threading.Event()
            complete = session.coordinator.directory.find("s").session.complete

            def delayed(device, *rest):
                if device == "d1":
                    delay.wait(slow)
                complete(device, *rest)

            session.coordinator.directory.find("s").session.complete = delayed
            session.all(lambda device: device.train(8))
            ahead = [weights_digest(device.model) for device in devices]
            session.all(end)
            return ahead, digests(devices)

    assert run(0.0) == run(0.05)


def test_nothing_waits_for_the_first_result():
    with Session() as session:
        first, *others = devices_of(session)
        session.all(lambda device: device.optimizer.join())
        first.train(3)  # a whole round, and one batch of the next, before the others have begun
        assert first.plan._anchor_step == 0
        session.all(lambda device: device.train(4), others)
        first.train(4)
        session.all(end)
        assert len(digests(session.devices)) == 1


@pytest.mark.parametrize("batches", [4, 5])
def test_the_end_takes_what_is_still_to_come(batches):
    with Session() as session:
        devices = devices_of(session)
        session.all(lambda device: device.train(batches))
        assert len(digests(devices)) == DEVICES
        sent = [moves_sent(device) for device in devices]
        session.all(end)
        assert len(digests(devices)) == 1
        assert [bool(moves) for moves in sent] == [batches == 5] * DEVICES  # without another batch it only collects
        before = digests(devices)
        session.all(end)
        assert digests(devices) == before


def test_without_others_it_makes_no_difference():
    after = []
    for overlap in (False, True):
        trained = model()
        optimizer = NewtonOptimizer(trained, sync=LocalSteps(every=2, overlap=overlap))
        for _ in range(5):
            take(optimizer, 0)
        optimizer.synchronise()
        after.append(weights_digest(trained))
    assert after[0] == after[1]


def test_devices_that_do_not_agree_on_it_are_named():
    with Session(devices=2, join_deadline_s=5) as session:
        session.device(0, overlap=True).optimizer.join()
        with pytest.raises(ExchangeError, match="overlap"):
            session.device(1).optimizer.join()


def test_what_is_in_common_is_the_anchor():
    with Session() as session:
        devices = devices_of(session)
        session.all(lambda device: device.train(4))
        ahead = [of_weights(device.model) for device in devices]
        seen = []
        for device in devices:
            assert device.plan.is_in_common
            with device.plan.in_common():
                seen.append(averaged(of_weights(device.model)))
        assert_close(seen[0], seen[1], rtol=0, atol=0)
        assert_close(seen[0], averaged(devices[0].seen[-1][1]), rtol=0, atol=0)
        for device, weights in zip(devices, ahead, strict=True):
            assert_close(of_weights(device.model), weights, rtol=0, atol=0)
        session.all(end)


def test_a_training_ends_with_what_all_have_in_common():
    settings = TrainSettings(steps=7, cadence="local-steps", local_steps=2, overlap=True, evaluate_every=2)
    with Session(devices=2) as session:
        told = []
        complete = session.coordinator.directory.find("s").session.complete

        def recorded(device, step, contribution, now):
            told.append((device, step, contribution.evaluation is not None))
            complete(device, step, contribution, now)

        session.coordinator.directory.find("s").session.complete = recorded

        def train(number):
            return train_in_session(
                "s",
                settings,
                number,
                2,
                until_step=settings.steps,
                connect=lambda: GradientExchange.connect(session.coordinator.address, session="s", device=f"d{number}"),
            )

        outcomes = list(session.pool.map(train, range(2)))
        assert {outcome.report.step for outcome in outcomes} == {7}
        assert len({outcome.report.weights_digest for outcome in outcomes}) == 1
        assert "sent" not in outcomes[0].state.optimizer["sync"]
        assert outcomes[0].state.step == 7
        assert all(is_evaluated for _, _, is_evaluated in told)
        assert sorted({step for _, step, _ in told}) == [0, 2, 4, 6]


def test_what_is_told_of_an_exchange_is_what_was_not_hidden():
    """Every result takes a while; in one round the batches take longer than that."""
    link_s, paces, sent_at = 0.4, [], 0.0
    with Session(devices=1) as session:
        session.coordinator.directory.find("s").session.progress.batches = 5
        (device,) = devices_of(session, 1, every=None)
        device.optimizer.join()
        place = device.plan._membership
        complete, collect = place.complete, place.collect

        def recorded(*contribution):
            nonlocal sent_at
            complete(*contribution)
            paces.append(contribution[-1])
            sent_at = time.perf_counter()

        def slow(**options):
            time.sleep(max(0.0, sent_at + link_s - time.perf_counter()))
            return collect(**options)

        place.complete, place.collect = recorded, slow
        device.train(11)
        time.sleep(1.2 * link_s)
        device.train(15)
        device.optimizer.synchronise()
    assert paces[0] is None
    assert 0.5 * link_s < paces[1].exchange_s < 1.1 * link_s
    assert paces[2].batch_s > link_s / 5
    assert paces[2].exchange_s < 0.2 * link_s


# ---------------------------------------------------------------- batches that cannot be used


def test_bad_batches_and_rounds_weigh_nothing():
    with Session(codec="int4") as session:
        devices = devices_of(session, nonfinite="skip")
        bad = {0: (1, 4, 5), 1: (4, 5), 2: (4, 5, 6)}  # all skip the third round
        session.all(lambda device: device.train(10, bad=bad[device.number]))
        assert [device.optimizer.skipped for device in devices] == [3, 2, 3]
        for device in devices:
            device.seen = [(step, averaged(anchor)) for step, anchor in device.seen]
        assert_equal(devices)
        anchors = dict(devices[0].seen)
        assert_close(anchors[4], anchors[6], rtol=0, atol=0)
        session.all(end)
        assert len(digests(devices)) == 1


# ---------------------------------------------------------------- stragglers


def test_a_round_that_came_too_late_is_sent_with_the_next():
    with Session(quorum=2, codec="int4", step_deadline_s=1, rejoin_deadline_s=30) as session:
        devices = devices_of(session, every=1, make=wide_model)
        slow, quick = devices[2], devices[:2]
        session.all(lambda device: device.optimizer.join())
        session.all(lambda device: device.train(1), quick)  # it commits without the third at its deadline
        wait_until_over(slow, 0)
        moves = moves_sent(slow)
        take(slow.optimizer, 2)  # it notices at once: there is nothing to overlap with
        assert slow.optimizer.last_result.left_out == ("d2",)
        assert slow.plan._anchor_step == slow.optimizer.current_step == 1
        kept = left_over(slow)
        assert kept
        for _, (_, name), move in moves:
            if name in kept:
                torch.testing.assert_close(kept[name], move.flatten())
        assert_close(of_weights(slow.model), slow.plan._anchor, rtol=0, atol=0)


def test_a_round_that_is_over_before_it_was_sent_is_kept_too():
    """The straggler waits for one result, is in the middle of the next round, and that one is over."""
    with Session(quorum=2, codec="int4", step_deadline_s=1, rejoin_deadline_s=30) as session:
        devices = devices_of(session, make=wide_model)
        slow, quick = devices[2], devices[:2]
        session.all(lambda device: device.train(2))
        session.all(lambda device: device.train(4), quick)
        wait_until_over(slow, 2)
        moves = moves_sent(slow)
        take(slow.optimizer, 2)
        assert slow.plan._anchor_step == slow.optimizer.current_step == 4
        kept = left_over(slow)
        assert kept
        assert_close(of_weights(slow.model), slow.plan._anchor, rtol=0, atol=0)
        assert {step for step, _, _ in moves} == {2}
        has_come = session.first_slice_of("d2")
        late = session.pool.submit(slow.train, 6)
        assert has_come.wait(WAIT_S)
        late.result(WAIT_S)
        session.all(lambda device: device.train(8))
        session.all(end)
        assert len(digests(devices)) == 1


def test_a_device_that_repeats_a_round_in_which_it_counted_does_not_count_twice():
    """It died after its moves had left, and came back with a state from before: once sent, and once on."""
    with Session(quorum=2, codec="int4", rejoin_deadline_s=30) as session:
        devices = devices_of(session)
        victim = devices[2]
        session.all(lambda device: device.train(2))
        victim.train(3)
        state = victim.state()
        session.all(lambda device: device.train(6))  # the rounds from 0 and 2 are over, that from 4 has all moves
        for device in devices:
            wait_until_over(device, 4)
        victim.exchange.close("killed")
        again = Device(session.coordinator.address, 2, state=state, overlap=True)
        again.optimizer.join()
        wait_until_over(again, 4)
        moves = moves_sent(again)
        take(again.optimizer, 2)
        assert again.optimizer.current_step == again.plan._anchor_step == 6
        assert moves
        error, sent = left_over(again), left_over_of(state)
        assert error.keys() <= {name for _, (_, name), _ in moves}
        for _, (_, name), move in moves:  # at most what rounding left of the round that was sent again
            assert error.get(name, torch.zeros(1)).norm() < 0.5 * move.norm()
        assert not sent  # nothing was left when it was sent first
        session.all(end, devices[:2])
        assert_close(averaged(again.plan._anchor), averaged(devices[0].plan._anchor), rtol=0, atol=0)
        again.exchange.close()


# ---------------------------------------------------------------- coming and going


@pytest.mark.parametrize("scope", ["own", "shared", "blend of a measured probe"])
def test_a_device_that_comes_late_becomes_identical(scope):
    with Session(devices=2, max_devices=3, codec="ternary", rejoin_deadline_s=30) as session:
        others = devices_of(session, 2, scope=SCOPES[scope])
        session.all(lambda device: device.train(4))
        late = session.device(2, trained=model(seed=9), scope=SCOPES[scope], overlap=True)
        last = session.let_in(late, 4)
        late.seen = []
        session.all(lambda device: device.train(last + 8))
        session.all(end)
        of_late = dict(late.seen)
        assert of_late
        for step, anchor in others[0].seen:
            if step in of_late:
                assert_close(averaged(of_late[step]), averaged(anchor), rtol=0, atol=0)
        assert len(digests(session.devices)) == 1


def test_a_device_whose_weights_were_changed_heals():
    with Session(digest_every=2, rejoin_deadline_s=30) as session:
        devices = devices_of(session)
        session.all(lambda device: device.train(4))
        with torch.no_grad():
            devices[1].plan._anchor["0.weight"].add_(0.1)
        session.all(lambda device: device.train(14))
        session.all(end)
        assert {device.optimizer.current_step for device in devices} == {14}
        assert len(digests(devices)) == 1


def test_the_others_go_on_without_one_that_leaves_with_a_round_under_way():
    with Session(quorum=2, rejoin_deadline_s=30) as session:
        devices = devices_of(session)
        session.all(lambda device: device.train(5))
        devices[2].exchange.close("tired")
        session.all(lambda device: device.train(9), devices[:2])
        session.all(end, devices[:2])
        assert len(digests(devices[:2])) == 1


# ---------------------------------------------------------------- saved states


@pytest.mark.parametrize("at", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("scope", ["own", "shared", "blend of a measured probe"])
def test_a_saved_state_goes_on_bit_by_bit(scope, at):
    """In the first round, when it was sent, and in the midst of the next ones."""

    def run(interrupted):
        with Session(devices=2, codec="ternary", rejoin_deadline_s=30) as session:
            devices_of(session, 2, scope=SCOPES[scope])
            session.all(lambda device: device.train(at))
            if interrupted:
                session.restart(scope=SCOPES[scope], overlap=True)
            session.all(lambda device: device.train(11))
            ahead = [of_weights(device.model) for device in session.devices]
            session.all(end)
            assert len(digests(session.devices)) == 1
            return [(weights, left_over(device)) for weights, device in zip(ahead, session.devices, strict=True)]

    for (weights, unsent), (again, unsent_again) in zip(run(False), run(True), strict=True):
        assert_close(weights, again, rtol=0, atol=0)
        assert_close(unsent, unsent_again, rtol=0, atol=0)


@pytest.mark.parametrize("has_come", [False, True])
def test_one_device_that_comes_back_with_a_round_under_way_counts_once(has_come):
    """Whether or not the coordinator has what it had sent."""

    def run(interrupted):
        with Session(rejoin_deadline_s=30, codec="int4") as session:
            devices = devices_of(session)
            session.all(lambda device: device.optimizer.join())
            if has_come:
                event = session.first_slice_of("d2")
            devices[2].train(3)
            if has_come:
                assert event.wait(WAIT_S)
            state = devices[2].state()
            if interrupted:
                devices[2].exchange.close("killed")
                session.devices.pop()
                devices[2] = session.device(2, trained=model(seed=8), state=state, overlap=True)
                devices[2].optimizer.join()
            session.all(lambda device: device.train(9))
            session.all(end)
            assert len(digests(devices)) == 1
            return digests(devices)

    assert run(False) == run(True)


@pytest.mark.parametrize("at", [4, 5])
def test_a_state_can_be_gone_on_from_without_overlap(at):
    with Session(devices=2, codec="int4") as session:
        devices_of(session, 2)
        session.all(lambda device: device.train(at))
        states = session.all(Device.state)
        for device in session.devices:
            device.exchange.close("restarted")
        session.devices = []
    with Session(devices=2, codec="int4") as session:
        for number, state in enumerate(states):
            session.device(number, trained=model(seed=8), state=state)
        session.all(lambda device: device.train(10))
        session.all(end)
        assert len(digests(session.devices)) == 1


def test_a_state_is_no_part_of_what_goes_on():
    with Session(devices=1, codec="int4") as session:
        (device,) = devices_of(session, 1)
        device.train(3)
        state = device.optimizer.state_dict()["sync"]
        before = copy.deepcopy(state)
        device.train(9)
        for name in ("parameters", "told"):
            assert_close(state["sent"][name], before["sent"][name], rtol=0, atol=0)
        assert_close(state["anchor"], before["anchor"], rtol=0, atol=0)
        assert state["round"] == before["round"]


def test_every_batch_goes_on_after_the_rounds_that_are_on():
    with Session(devices=1) as session:
        (device,) = devices_of(session, 1)
        device.train(5)
        state = device.state()
    optimizer = NewtonOptimizer(device.model, sync=EveryBatch())
    optimizer.load_state_dict(state["optimizer"])
    assert optimizer.current_step == 5


# ---------------------------------------------------------------- the session's choice


class Alternating:
    """Chooses other numbers of batches and other forms all the time."""

    def __init__(self):
        self.choices = cycle([3, 1, 4, 2])
        self.forms = cycle(Form)

    def choose(self, batches, paces, waited_s, form=None):
        assert {pace.form for pace in paces.values()} == {form}
        return Cadence(next(self.choices), "as told", next(self.forms))


def test_what_the_session_chooses_is_for_the_round_that_nobody_has_begun():
    with Session(devices=2, max_devices=3, codec="auto", rejoin_deadline_s=30) as session:
        inner = session.coordinator.directory.find("s").session
        inner.progress.batches, inner.progress._cadence = 5, Alternating()
        others = devices_of(session, 2, every=None)
        session.all(lambda device: device.train(22))
        # With the result of the round from 5, its exchange was measured first; it comes when that from 10 is over.
        assert [step for step, _ in others[0].seen] == [0, 5, 10, 15, 18]
        late = session.device(2, trained=model(seed=9), every=None, overlap=True)
        last = session.let_in(late, 22, by=5)
        session.all(lambda device: device.train(last + 12))
        states = session.all(Device.state)
        for device in session.devices:
            device.exchange.close("restarted")
        session.devices = []
        for number, state in enumerate(states):
            session.device(number, every=None, overlap=True, state=state)
        session.all(lambda device: device.train(last + 28))
        session.all(end)
        assert len(digests(session.devices)) == 1
