"""Local steps of several devices, through a real coordinator, against the same computed plainly."""

import copy
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
from edgenewton.v1.codecs import form_from_proto
from edgenewton.v1.forms import Form
from edgenewton.v1.framing import parse_frame
from local_devices import (
    DEVICES,
    SCOPES,
    Device,
    Recorded,
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
    probe,
    samples_of,
    take,
    wide_model,
)
from torch import nn

from benchmarks.shared.tcp_proxy import TcpProxy
from coordinator.serving.server import embedded_coordinator
from coordinator.session.cadence import Cadence
from coordinator.session.settings import SessionSettings
from edge_client import EveryBatch, GradientExchange, NewtonOptimizer
from edge_client.curvature.schedule import is_on_log_schedule
from edge_client.exchange import ExchangeError, InProcessExchange, NonFiniteGradientError, StepResult
from edge_client.optim.options import Refresh
from edge_client.optim.refresh import RefreshSchedule
from edge_client.sync import LocalSteps, Outer, Probed
from edge_client.sync import moves as moves_module
from edge_client.sync.replica import weights_digest

CODECS = ("fp32", "int8", "int4", "ternary", "sign", "sparse4", "sparse2", "sparse1", "powersgd", "topk")


# ---------------------------------------------------------------- what a round is


@pytest.mark.parametrize(
    ("every", "lr", "momentum"), [(3, 0.7, 0.6), (1, 0.7, 0.6), (3, 1.0, 0.0), (1, 1.0, 0.0), (2, 0.5, 0.0)]
)
def test_rounds_are_those_of_a_plain_computation(every, lr, momentum):
    rounds = 4
    with Session() as session:
        for number in range(DEVICES):
            session.device(number, trained=plain_model(), every=every, outer=Outer(lr, momentum))
        session.all(lambda device: device.train(every * rounds))
        assert_equal(session.devices, rounds=rounds)
        seen = session.devices[0].seen
    anchor = of_weights(plain_model())
    velocity = {name: torch.zeros_like(tensor) for name, tensor in anchor.items()}
    alone = [NewtonOptimizer(plain_model()) for _ in range(DEVICES)]
    total = sum(map(samples_of, range(DEVICES)))
    for _, after in seen:
        moved = []
        for number, optimizer in enumerate(alone):
            optimizer._model.load_state_dict(anchor)
            for _ in range(every):
                take(optimizer, number)
            moved.append(of_weights(optimizer._model))
        for name, before in anchor.items():
            mean = sum(samples_of(i) * (weights[name] - before) for i, weights in enumerate(moved)) / total
            velocity[name] = momentum * velocity[name] + mean
            anchor[name] = before + lr * (mean + momentum * velocity[name])
            if (lr, momentum) == (1, 0):
                average = sum(samples_of(i) * weights[name] for i, weights in enumerate(moved)) / total
                torch.testing.assert_close(anchor[name], average, rtol=1e-5, atol=1e-6)
        assert_close(after, anchor, rtol=1e-4, atol=1e-5)
        anchor = after  # rounding is not to add up


@pytest.mark.parametrize("scope", SCOPES)
def test_devices_are_identical_after_every_exchange(scope):
    with embedded_coordinator() as coordinator, ThreadPoolExecutor(DEVICES) as pool:
        for codec in CODECS:
            coordinator.create_session("s", SessionSettings(devices=DEVICES, codec=codec, topk_fraction=0.1))
            devices = [Device(coordinator.address, i, scope=SCOPES[scope]) for i in range(DEVICES)]
            list(pool.map(lambda device: device.train(7).optimizer.synchronise(), devices))
            assert_equal(devices)
            assert len({weights_digest(device.model) for device in devices}) == 1, codec
            assert all(tensor.isfinite().all() for tensor in devices[0].model.state_dict().values()), codec
            list(pool.map(Device.close, devices))


def test_scaling_changes_how_moves_are_written_and_not_which():
    after = []
    for codec in ("fp32", "int8"):
        with Session(codec=codec) as session:
            for number in range(DEVICES):
                session.device(number, scope=SCOPES["probe"])
            session.all(lambda device: device.train(4))
            after.append(session.devices[0].seen[1][1])
    begun = of_weights(model())
    for name in ("0.weight", "3.weight", "5.weight"):
        assert (after[0][name] - after[1][name]).norm() < 0.3 * (after[0][name] - begun[name]).norm()


def test_running_means_are_averaged():
    with Session() as session:
        for number in range(DEVICES):
            session.device(number, every=1)
        session.all(lambda device: device.train(1))
        alone = [NewtonOptimizer(model()) for _ in range(DEVICES)]
        for number, optimizer in enumerate(alone):
            take(optimizer, number)
        means = [samples_of(i) * optimizer._model[1].running_mean for i, optimizer in enumerate(alone)]
        torch.testing.assert_close(
            session.devices[1].model[1].running_mean, sum(means) / sum(map(samples_of, range(DEVICES)))
        )


# ---------------------------------------------------------------- stragglers


@pytest.mark.parametrize("codec", ["int4", "ternary", "topk", "powersgd"])
def test_what_a_straggler_did_is_sent_with_its_next_round(codec):
    with Session(quorum=2, codec=codec, step_deadline_s=1, rejoin_deadline_s=30, topk_fraction=0.1) as session:
        for number in range(DEVICES):
            session.device(number, every=1, trained=wide_model())
        slow, quick = session.devices[2], session.devices[:2]
        session.all(lambda device: device.optimizer.join())
        moves = moves_sent(slow)
        session.all(lambda device: device.train(1), quick)  # commits without the third at its deadline
        before = left_over(slow)
        assert not before
        take(slow.optimizer, 2)
        assert slow.optimizer.last_result.left_out == ("d2",)
        kept = left_over(slow)
        assert {name for _, (_, name), _ in moves} >= set(kept)
        assert kept
        for _, (_, name), move in moves:
            if name in kept:
                torch.testing.assert_close(kept[name], move.flatten())
        moves.clear()
        has_come = session.first_slice_of("d2")
        late = session.pool.submit(slow.train, 2)
        assert has_come.wait(30)  # it is waited for again
        session.all(lambda device: device.train(2), quick)
        late.result(30)
        # What was sent, and what is left of it, are both moves together.
        sent = {}
        for _, (_, name), move in moves:
            if name in kept:
                sent[name] = kept[name] + move.flatten() - left_over(slow)[name]
        assert all(values.norm() > 0 for values in sent.values())
        assert len({weights_digest(device.model) for device in session.devices}) == 1


def test_of_a_vector_that_was_in_time_nothing_is_sent_again(monkeypatch):
    """The straggler stops in the middle of its contribution."""
    monkeypatch.setattr(moves_module, "_MAX_ELEMENTS", 1000)  # a vector for each layer
    with Session(quorum=2, codec="int4", step_deadline_s=1, rejoin_deadline_s=30) as session:
        for number in range(DEVICES):
            session.device(number, every=1, trained=wide_model())
        slow, quick = session.devices[2], session.devices[:2]
        session.all(lambda device: device.optimizer.join())
        place, moves, committed = slow.plan._membership, moves_sent(slow), threading.Event()
        contribute, has_come = place.contribute, session.first_slice_of("d2")

        def pausing(key, value):
            if len(moves) == 2:
                place._link.send(place._packer.take())  # what was written so far
                assert committed.wait(30)
            contribute(key, value)

        place.contribute = pausing
        late = session.pool.submit(slow.train, 1)
        assert has_come.wait(30)
        session.all(lambda device: device.train(1), quick)
        committed.set()
        late.result(30)
        counted = [(key[1], move) for _, key, move in moves[:2]]
        others = [(key[1], move) for _, key, move in moves[2:]]
        error = left_over(slow)
        for name, move in counted:  # nothing but its rounding is left
            if name in error:
                assert error[name].norm() < 0.3 * move.norm()
        for name, move in others:
            if name in error:
                torch.testing.assert_close(error[name], move.flatten(), rtol=1e-4, atol=1e-6)
        assert counted[1][0] in error
        assert others[0][0] in error
        assert len({weights_digest(device.model) for device in session.devices}) == 1


def test_a_device_that_repeats_a_round_in_which_it_counted_does_not_count_twice():
    """It died after its moves had left, and came back with a state from before."""
    with Session(quorum=2, codec="int4", rejoin_deadline_s=30) as session:
        for number in range(DEVICES):
            session.device(number)
        victim = session.devices[2]
        session.all(lambda device: device.train(2))
        victim.train(3)
        state = victim.state()
        session.all(lambda device: device.train(4))
        victim.exchange.close("killed")
        again = Device(session.coordinator.address, 2, state=state)
        again.optimizer.join()
        place = again.plan._membership
        with place._link._changed:
            assert place._link._changed.wait_for(lambda: place.has_committed(place.step), 30)
        take(again.optimizer, 2)
        error = left_over(again)
        assert again.optimizer.current_step == 4
        for name, tensor in left_over_of(state).items():
            assert torch.equal(error[name], tensor)  # as it was before: nothing of the repeated round was added
        again.exchange.close()


# ---------------------------------------------------------------- coming and going


@pytest.mark.parametrize("scope", ["own", "blend of a measured probe"])
def test_a_device_that_comes_late_becomes_identical(scope):
    with Session(devices=2, max_devices=3, codec="ternary", rejoin_deadline_s=30) as session:
        for number in range(2):
            session.device(number, scope=SCOPES[scope])
        session.all(lambda device: device.train(4))
        late = session.device(2, trained=model(seed=9), scope=SCOPES[scope])
        last = session.let_in(late, 4)
        late.seen = []
        for device in session.devices[:2]:
            device.seen = []
        last += 6
        session.all(lambda device: device.train(last))
        of_late = dict(late.seen)
        assert last in of_late
        for step, weights in session.devices[0].seen:
            if step in of_late:
                assert_close(averaged(of_late[step]), averaged(weights), rtol=0, atol=0)


def test_steps_that_come_while_a_device_joins_are_probed_as_on_the_others():
    """A snapshot, and then the steps that were taken since: the plan has no membership yet."""

    class Late(InProcessExchange):
        def join(self, tensors, options, replica, training_samples=0, stages=None):
            replica.load(dumped)
            for result in results:
                replica.apply(result)
            return SimpleNamespace(step=results[-1].next_step, load_state_dict=lambda state: None)

    def device(exchange=None):
        scope = Probed(probe())
        trained = plain_model()
        return NewtonOptimizer(trained, sync=LocalSteps(exchange, 2, scope=scope)), scope

    optimizer, scope = device()
    optimizer.join()
    dumped = optimizer._sync.replica.dump()
    results = []
    for step in range(4):
        take(optimizer, 0)
        if step % 2:
            results.append(optimizer.last_result)
    late, of_late = device(Late())
    late.join()
    assert weights_digest(late._model) == weights_digest(optimizer._model)
    for name, statistics in scope._of_round.items():
        assert_close(statistics, of_late._of_round[name], rtol=0, atol=0)


def test_a_device_whose_weights_were_changed_heals():
    with Session(digest_every=2, rejoin_deadline_s=30) as session:
        for number in range(DEVICES):
            session.device(number)
        session.all(lambda device: device.train(2))
        with torch.no_grad():
            session.devices[1].model[0].weight.add_(0.1)
            session.devices[1].plan._anchor["0.weight"].add_(0.1)
        session.all(lambda device: device.train(10))
        assert session.devices[1].optimizer.current_step == 10
        assert len({weights_digest(device.model) for device in session.devices}) == 1


def test_the_end_of_training_ends_a_round():
    with Session() as session:
        for number in range(DEVICES):
            session.device(number, every=3)
        session.all(lambda device: device.train(4))
        assert len({weights_digest(device.model) for device in session.devices}) == DEVICES
        session.all(lambda device: device.optimizer.synchronise())
        assert len({weights_digest(device.model) for device in session.devices}) == 1
        assert {device.optimizer.current_step for device in session.devices} == {4}
        before = weights_digest(session.devices[0].model)
        session.devices[0].optimizer.synchronise()  # nothing is left to exchange
        assert weights_digest(session.devices[0].model) == before


def test_devices_with_other_numbers_of_batches_are_named():
    with Session(devices=2) as session:
        for number in range(2):
            session.device(number, every=4)

        def end(device):
            device.train(2 + device.number)
            try:
                device.optimizer.synchronise()
            except ExchangeError as error:
                device.exchange.close(str(error))
                return str(error)

        told = " ".join(filter(None, session.all(end)))
        assert "it trained" in told
        assert "all devices must exchange after the same number of batches" in told
        assert "device 'd" in told


# ---------------------------------------------------------------- batches that cannot be used


def test_a_bad_batch_is_skipped_with_what_its_forward_left():
    with Session() as session:
        for number in range(DEVICES):
            session.device(number, every=3, nonfinite="skip")
        session.all(lambda device: device.train(6, bad=(1, 3) if device.number == 1 else ()))
        assert session.devices[1].optimizer.skipped == 2
        samples = session.devices[0].optimizer.last_result.samples
        assert samples == 3 * sum(map(samples_of, range(DEVICES))) - samples_of(1)
        for device in session.devices:
            for name, tensor in device.model.named_buffers():
                assert tensor.isfinite().all()
                if tensor.is_floating_point():
                    assert torch.equal(tensor, session.devices[0].model.get_buffer(name))
        assert len({weights_digest(nn.ParameterList(device.model.parameters())) for device in session.devices}) == 1


def test_a_bad_batch_that_is_an_error_leaves_the_model_as_it_was():
    trained = model()
    optimizer = NewtonOptimizer(trained, sync=LocalSteps(every=3))
    take(optimizer, 0)
    before = of_weights(trained)
    with pytest.raises(NonFiniteGradientError, match=r"step 1: the gradient of .* is not finite"):
        take(optimizer, 0, bad=True)
    assert_close(before, of_weights(trained), rtol=0, atol=0)


def test_a_round_of_skipped_batches_changes_nothing():
    with Session(codec="int4") as session:
        for number in range(DEVICES):
            session.device(number, nonfinite="skip")
        session.all(lambda device: device.train(2))
        before, residual = of_weights(session.devices[0].model), left_over(session.devices[0])
        session.all(lambda device: device.train(4, bad=(2, 3)))
        assert session.devices[0].optimizer.last_result.samples == 0
        assert_close(of_weights(session.devices[0].model), before, rtol=0, atol=0)
        assert_close(left_over(session.devices[0]), residual, rtol=0, atol=0)
        session.all(lambda device: device.train(6))
        assert_equal(session.devices)


@pytest.mark.parametrize("scope", ["probe", "shared"])
def test_a_round_that_begins_with_a_bad_batch_has_its_curvature_all_the_same(scope):
    trained = plain_model()
    optimizer = NewtonOptimizer(trained, sync=LocalSteps(every=3, scope=SCOPES[scope](0)), nonfinite="skip")
    for batch in range(6):
        take(optimizer, 0, bad=batch in (0, 3))
    updates = [state.estimator.updates for state in optimizer._preconditioner.layers]
    assert updates == [2 if scope == "probe" else 1] * 2


# ---------------------------------------------------------------- saved states


@pytest.mark.parametrize("at", [4, 5])
@pytest.mark.parametrize("scope", ["own", "shared", "blend of a measured probe"])
def test_a_saved_state_goes_on_bit_by_bit(scope, at):
    def run(interrupted):
        with Session(devices=2, codec="ternary", rejoin_deadline_s=30) as session:
            for number in range(2):
                session.device(number, scope=SCOPES[scope])
            session.all(lambda device: device.train(at))
            if interrupted:
                session.restart(scope=SCOPES[scope])
            session.all(lambda device: device.train(10))
            session.all(lambda device: device.optimizer.synchronise())
            assert len({weights_digest(device.model) for device in session.devices}) == 1
            return [(of_weights(device.model), left_over(device)) for device in session.devices]

    for (weights, unsent), (again, unsent_again) in zip(run(False), run(True), strict=True):
        assert_close(weights, again, rtol=0, atol=0)
        assert_close(unsent, unsent_again, rtol=0, atol=0)


def test_a_state_is_no_part_of_what_goes_on():
    optimizer = NewtonOptimizer(plain_model(), sync=LocalSteps(every=2))
    for _ in range(3):
        take(optimizer, 0)
    state = optimizer.state_dict()["sync"]
    before = copy.deepcopy(state)
    for _ in range(4):
        take(optimizer, 0)
    assert state["round"] == before["round"]
    assert_close(state["outer"], before["outer"], rtol=0, atol=0)
    assert_close(state["anchor"], before["anchor"], rtol=0, atol=0)


def test_a_state_that_was_not_joined_with_keeps_what_is_to_be_sent():
    with Session(devices=1, codec="int4") as session:
        session.device(0).train(3)
        state = session.devices[0].state()
    trained = model(seed=5)
    waiting = NewtonOptimizer(trained, sync=LocalSteps(every=2))
    trained.load_state_dict(state["model"])
    waiting.load_state_dict(copy.deepcopy(state["optimizer"]))
    assert waiting.state_dict()["sync"]["unsent"].keys() == state["optimizer"]["sync"]["unsent"].keys() != set()


def test_a_round_of_a_saved_state_can_be_ended_at_once():
    trained, again = plain_model(), plain_model()
    optimizer = NewtonOptimizer(trained, sync=LocalSteps(every=3))
    take(optimizer, 0)
    other = NewtonOptimizer(again, sync=LocalSteps(every=3))
    again.load_state_dict(trained.state_dict())
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    optimizer.synchronise()
    other.synchronise()
    assert weights_digest(trained) == weights_digest(again)


@pytest.mark.parametrize("plans", [(EveryBatch, LocalSteps), (LocalSteps, EveryBatch)])
@pytest.mark.parametrize("batches", [4, 5])
def test_a_state_of_the_other_cadence_gives_the_step_and_the_curvature(plans, batches):
    def plan(kind, exchange):
        return LocalSteps(exchange, 2) if kind is LocalSteps else EveryBatch(exchange)

    with Session(devices=1, codec="int4") as session:
        exchange = GradientExchange.connect(session.coordinator.address, session="s", device="d0")
        before = NewtonOptimizer(model(), sync=plan(plans[0], exchange))
        for _ in range(batches):
            take(before, 0)
        state = copy.deepcopy(before.state_dict())
        exchange.close()
        session.coordinator.create_session("s", SessionSettings(**session.settings))
        exchange = GradientExchange.connect(session.coordinator.address, session="s", device="d0")
        trained = model()
        trained.load_state_dict(before._model.state_dict())
        after = NewtonOptimizer(trained, sync=plan(plans[1], exchange))
        after.load_state_dict(state)
        after.join()
        assert after.current_step == batches
        assert weights_digest(trained) == weights_digest(before._model)
        updates = [state.estimator.updates for state in after._preconditioner.layers]
        take(after, 0)
        assert all(updates)
        exchange.close()


# ---------------------------------------------------------------- ever farther apart


def test_what_is_on_the_log_schedule():
    listed = [0, 1, 2, 3, 5, 8, 12, 18, 27, 41, 62, 93, 140, 210, 315, 473, 710]
    assert [number for number in range(711) if is_on_log_schedule(number)] == listed
    schedule = RefreshSchedule(Refresh(warmup_steps=1, growth=1.5, factor_every=1000, inverse_every=1000))
    schedule.begin(10)
    assert [step - 10 for step in range(10, 721) if schedule.inverts(step)] == listed
    assert [step - 10 for step in range(10, 721) if schedule.updates_factors(step)] == listed
    assert [n for n in range(40) if is_on_log_schedule(n, 2.0)] == [0, 1, 2, 4, 8, 16, 32]


def test_the_curvature_is_renewed_ever_more_seldom_but_at_least_every_so_many_steps():
    schedule = RefreshSchedule(Refresh(inverse_every=10))
    schedule.begin(3)
    listed = [*range(20), 23, 28, 34, 41, 50, 60, 72, 87, 105, 125, 145, 165, 185]
    assert [step - 3 for step in range(3, 200) if schedule.updates_factors(step)] == listed
    inverted = [step - 3 for step in range(3, 103) if schedule.inverts(step)]
    assert inverted == [*range(20), 23, 28, 34, 41, 50, 60, 70, 80, 90]
    constant = RefreshSchedule(Refresh(warmup_steps=2, factor_every=5, growth=1))
    assert [step for step in range(20) if constant.updates_factors(step)] == [0, 1, 2, 7, 12, 17]


def test_a_missed_result_of_no_samples_moves_nothing():
    trained = plain_model()
    plan = LocalSteps(every=2)
    optimizer = NewtonOptimizer(trained, sync=plan)
    take(optimizer, 0)
    plan.replica.apply(StepResult(0, {}, samples=0, devices=0, loss=float("nan"), batches=2))
    assert weights_digest(trained) == weights_digest(plain_model())


# ---------------------------------------------------------------- what the session chooses


class Scripted:
    """Chooses what was written down, and then always the last of it."""

    def __init__(self, *script):
        self.script = list(script)
        self.told = []
        """In which form the moves of each step were, as the session and the devices say."""

    def choose(self, batches, paces, waited_s, form=None):
        self.told.append((form, {pace.form for pace in paces.values()}))
        form, batches = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        return Cadence(batches, "it is written", form)


INT4, SPARSE1 = Form


def scripted(session, *script):
    """Let a session begin with rounds of two batches, and go on as it is written."""
    inner = session.coordinator.directory.find("s").session
    inner.progress.batches, inner.progress._cadence = 2, Scripted(*script)
    return inner.progress._cadence


def seen_forms(device):
    """Return in which forms the moves of a device, and their means, have travelled by step; it fills up."""
    place, sent, received = device.plan._membership, {}, {}
    send, take_frame = place._link.send, place._link._assembly.take_frame

    def note(data, forms):
        frame, slices = parse_frame(data, place._layout)
        for piece, payload in slices:
            if piece.spec.kind == "delta":
                forms.setdefault(frame.step, set()).add(form_from_proto(payload[0]))

    def sending(data, **options):
        note(data, sent)
        send(data, **options)

    def taking(data):
        note(data, received)
        return take_frame(data)

    place._link.send, place._link._assembly.take_frame = sending, taking
    return sent, received


CHANGES = ((INT4, 2), (SPARSE1, 3), (SPARSE1, 2), (INT4, 1), (SPARSE1, 2))
STEPS = {2: INT4, 4: INT4, 6: SPARSE1, 9: SPARSE1, 11: INT4, 12: SPARSE1, 14: SPARSE1}
"""Those that follow from it, after the first, and how their moves travel."""


@pytest.mark.parametrize("scope", ["own", "blend of a measured probe"])
def test_devices_are_identical_over_changes_of_the_form(scope):
    with Session(codec="auto") as session:
        cadence = scripted(session, *CHANGES)
        for number in range(DEVICES):
            session.device(number, every=None, trained=wide_model(), scope=SCOPES[scope])
        session.all(lambda device: device.optimizer.join())
        seen = [seen_forms(device) for device in session.devices]
        session.all(lambda device: device.train(16))
        assert_equal(session.devices, rounds=8)
        for sent, received in seen:
            assert sent == received == {step: {form} for step, form in ({0: INT4} | STEPS).items()}
        assert cadence.told == [(form, {form}) for form in STEPS.values()]


def test_the_error_of_a_device_goes_on_over_a_change_of_the_form():
    with Session(devices=1, codec="auto") as session:
        scripted(session, (SPARSE1, 2), (INT4, 2))
        device = session.device(0, every=None, trained=wide_model())
        device.optimizer.join()
        moves = moves_sent(device)
        for until, decay in ((2, 1.0), (4, 1.0), (6, 0.7), (8, 1.0)):
            before = left_over(device)
            device.train(until)
            ((_, (_, name), move),) = moves
            moves.clear()
            error = left_over(device)[name]
            assert error.norm() > 0
            arrived = decay * before.get(name, torch.zeros_like(move)) + move - error
            kept = int(arrived.abs().gt(1e-6).sum())
            assert (kept < len(move) // 8) == (decay < 1)


def test_a_device_that_comes_late_writes_in_the_form_of_the_others():
    with Session(devices=2, max_devices=3, codec="auto", rejoin_deadline_s=30) as session:
        scripted(session, (SPARSE1, 2))
        for number in range(2):
            session.device(number, every=None, trained=wide_model())
        session.all(lambda device: device.train(6))
        late = session.device(2, every=None, trained=wide_model())
        last = session.let_in(late, 6)
        assert (late.plan._choice.form, late.plan._choice.batches(is_behind=False)) == (SPARSE1, 2)
        for device in session.devices:
            device.seen = []
        sent, _ = seen_forms(late)
        has_come = session.first_slice_of("d2")
        trained = session.pool.submit(late.train, last + 6)
        assert has_come.wait(30)  # from now on it is waited for
        session.all(lambda device: device.train(last + 6), session.devices[:2])
        trained.result(30)
        assert sent == {step: {SPARSE1} for step in (last, last + 2, last + 4)}
        late.seen = [seen for seen in late.seen if seen[0] > last]  # it may have gone on from before that step
        assert_equal(session.devices, rounds=3)


def test_a_device_that_is_restarted_writes_in_the_form_of_the_others():
    with Session(devices=2, codec="auto", rejoin_deadline_s=30) as session:
        scripted(session, (SPARSE1, 2))
        for number in range(2):
            session.device(number, every=None, trained=wide_model())
        session.all(lambda device: device.train(7))
        states = session.all(Device.state)
        assert {state["optimizer"]["sync"]["form"] for state in states} == {"sparse1"}
        for device in session.devices:
            device.exchange.close("restarted")
        session.devices = []
        for number, state in enumerate(states):
            session.device(number, every=None, trained=wide_model(), state=state)
        session.all(lambda device: device.optimizer.join())
        seen = [seen_forms(device) for device in session.devices]
        session.all(lambda device: device.train(12))
        assert_equal(session.devices)
        assert seen[0] == seen[1] == ({step: {SPARSE1} for step in (6, 8, 10)},) * 2


def test_a_coordinator_that_is_restarted_learns_the_form_from_the_devices(tmp_path):
    first = Recorded(tmp_path / "record")
    first.create_session(SessionSettings(devices=2, digest_every=0))
    scripted(SimpleNamespace(coordinator=first), (SPARSE1, 2))
    devices = [Device(first.address, number, every=None, trained=wide_model()) for number in range(2)]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda device: device.train(6), devices))
        first.suspend()
        second = Recorded(tmp_path / "record", first.port)
        session = second.directory.find("s").session
        assert (session.form, session.batches) == (None, None)
        seen = [seen_forms(device) for device in devices]
        list(pool.map(lambda device: device.train(12), devices))
        assert session.form is SPARSE1
        assert_equal(devices)
        for sent, received in seen:
            assert set(sent) > {6}
            assert all(forms == {SPARSE1} for forms in sent.values())
            assert received == sent | {6: {INT4}}  # nobody had told it yet
        for device in devices:
            device.close()
        second.suspend()


def test_behind_thin_links_moves_become_sparse():
    """Nothing is scripted here."""
    with Session(devices=2, codec="auto") as session:
        address = session.coordinator.address
        with TcpProxy(address, 0.01, 500_000) as one, TcpProxy(address, 0.01, 500_000) as other:
            for number, proxy in enumerate((one, other)):
                torch.manual_seed(0)
                trained = nn.Sequential(nn.Linear(6, 256), nn.Tanh(), nn.Linear(256, 256), nn.Tanh(), nn.Linear(256, 3))
                session.devices.append(Device(proxy.address, number, every=None, trained=trained, curvature="eva"))
            statistics, until = session.coordinator.directory.find("s").chronicle.statistics, 0
            while statistics.form != "sparse1" and until < 600:  # a busy machine has slow batches, and few exchanges
                until += 60
                session.all(lambda device, until=until: device.train(until))
            assert_equal(session.devices)
            assert statistics.form == "sparse1"
            told = [incident.text for incident in statistics.incidents if incident.kind == "cadence"]
            assert any(text.startswith("exchanges in sparse1 after every") for text in told)
            for device in session.devices:
                device.exchange.close()


def test_with_a_fixed_number_of_batches_or_another_codec_the_form_stays():
    for codec, every in (("auto", 2), ("int4", None)):
        with Session(devices=2, codec=codec) as session:
            inner = session.coordinator.directory.find("s").session
            inner.progress.batches = 2
            for number in range(2):
                session.device(number, every=every, trained=wide_model())
            session.all(lambda device: device.optimizer.join())
            assert {device.plan._choice.form for device in session.devices} == {None}
            session.all(lambda device: device.train(2))
            assert inner.form is (INT4 if codec == "auto" else None)
