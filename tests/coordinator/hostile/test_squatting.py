"""Model squatting: who brings another model first, or leaves in between, makes no honest device be refused."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import grpc
import pytest
import torch
from bare_client import SPEC, Device, join_request, refused
from edgenewton.v1 import exchange_pb2 as pb
from edgenewton.v1.fingerprint import fingerprint_from_proto, model_fingerprint
from edgenewton.v1.tensor_spec import TensorSpec
from local_devices import plain_model, take

from coordinator.serving.directory import Directory
from coordinator.serving.server import embedded_coordinator
from coordinator.session import decisions as d
from coordinator.session.members import Joining, Standing
from coordinator.session.refusal import RefusedError, Status, UndecidedError
from coordinator.session.session import Session
from coordinator.session.settings import SessionSettings
from coordinator.session.step import Contribution
from coordinator.telemetry.record import Record
from edge_client import EveryBatch, GradientExchange, NewtonOptimizer
from edge_client.exchange import ExchangeError
from edge_client.sync.sketching import sketch_of

OTHER = TensorSpec("squat.weight", (5, 5))


def trains(*devices: Device) -> bool:
    for device in devices:
        device.send_gradient(0, 2.0)
    return all(next(f.commit for f in d.stream if f.HasField("commit")).devices == len(devices) for d in devices)


# ---------------------------------------------------------------- on a real port


@pytest.mark.parametrize("finished", [False, True])
def test_a_model_goes_with_the_last_device_that_brought_it(coordinator, stub, finished):
    coordinator.create_session("s", SessionSettings(devices=2))
    squatter = Device(stub, "squatter", OTHER)
    request = pb.LeaveRequest(session="s", device="squatter", token=squatter.reply.token, finished=finished)
    stub.Leave(request, timeout=5)
    assert trains(Device(stub, "a"), Device(stub, "b"))


def test_an_outdated_device_that_stays_gives_way_to_most(coordinator, stub):
    coordinator.create_session("s", SessionSettings(devices=4, quorum=3, join_deadline_s=1))
    outdated = Device(stub, "outdated", OTHER)
    outdated.send(pb.Frame(heartbeat=pb.Heartbeat()))
    with ThreadPoolExecutor(3) as pool:
        honest = list(pool.map(lambda name: Device(stub, name), "abc"))
    error = outdated.error()
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert error.details() == (
        "device 'outdated' loses its place in session 's': most others have another model: its model differs: the "
        "session has the gradient of 'fc.weight', 2 x 3 float32 where this device has the gradient of 'squat.weight', "
        "5 x 5 float32"
    )
    code, _ = refused(lambda: stub.Join(join_request("outdated", OTHER), timeout=5))
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert trains(*honest)


def test_real_devices_wait_until_most_have_come_and_train():
    """Others have another step size; the first device has that of an older release."""
    with embedded_coordinator() as coordinator, ThreadPoolExecutor(3) as pool:
        coordinator.create_session("s", SessionSettings(devices=4, quorum=3, join_deadline_s=30))
        exchanges = [GradientExchange.connect(coordinator.address, session="s", device=f"d{n}") for n in range(4)]
        rates = (0.5, 0.05, 0.05, 0.05)
        optimizers = [
            NewtonOptimizer(plain_model(), sync=EveryBatch(exchange), lr=0.05, momentum=rate)
            for exchange, rate in zip(exchanges, rates, strict=True)
        ]
        optimizers[0].join()
        list(pool.map(NewtonOptimizer.join, optimizers[1:]))
        with pytest.raises(ExchangeError, match="'d0' loses its place .* option 'momentum' is 0.05 in the session but"):
            take(optimizers[0], 0)
        exchanges[0].close()
        session = coordinator.directory.find("s").session
        assert sorted(session.members) == ["d1", "d2", "d3"]
        refusals = coordinator.directory.find("s").chronicle.statistics.refusals
        assert not refusals  # to wait is not to be refused
        for exchange in exchanges[1:]:
            exchange.close()


def test_a_model_that_is_not_the_expected_one_is_refused_with_both_fingerprints(coordinator, stub):
    expected = model_fingerprint(fingerprint_from_proto(join_request("a").tensors), {"lr": "0.1"})
    coordinator.create_session("s", SessionSettings(devices=1, model_fingerprint=expected))
    for spec, options in ((OTHER, {"lr": "0.1"}), (SPEC, {"lr": "0.2"})):
        request = join_request("squatter", spec, options=options)
        code, details = refused(lambda request=request: stub.Join(request, timeout=5))
        assert code is grpc.StatusCode.FAILED_PRECONDITION
        theirs = model_fingerprint((spec,), options)
        assert f"have the fingerprint {theirs}; --model-fingerprint expects {expected}" in details
    assert trains(Device(stub, "a", options={"lr": "0.1"}))
    assert coordinator.directory.find("s").session.admission.model == expected


# ---------------------------------------------------------------- the state machine


def joining(device: str, spec: TensorSpec = SPEC, **fields) -> Joining:
    values = {"options": {"lr": "0.1"}, "weights_digest": b"same"} | fields
    return Joining(device, (spec,), **values)


def gathering(devices: int = 4, **settings) -> Session:
    return Session("s", SessionSettings(devices=devices, **settings))


def test_a_session_of_two_cannot_be_outvoted_and_says_so_at_once():
    session = gathering(devices=2)
    session.join(joining("a"), 0.0)
    with pytest.raises(RefusedError, match="its model differs: .* 'fc.weight'") as refusal:
        session.join(joining("b", OTHER), 0.0)
    assert refusal.value.status is Status.FAILED_PRECONDITION


def test_once_the_sessions_model_cannot_be_outvoted_any_more_who_waits_is_told():
    session = gathering()
    session.join(joining("a"), 0.0)
    with pytest.raises(UndecidedError, match="'outdated' waits .* its model differs.* 3 of the 4 awaited devices have"):
        session.join(joining("outdated", OTHER), 1.0)
    session.join(joining("b"), 2.0)
    with pytest.raises(RefusedError) as refusal:
        session.join(joining("outdated", OTHER), 3.0)
    assert refusal.value.status is Status.FAILED_PRECONDITION


def test_nothing_of_a_model_that_was_replaced_is_left():
    session = gathering(devices=3, trust_state_of=("squatter",))
    session.join(joining("squatter", OTHER, next_step=70), 0.0)
    assert session.step.number == 70
    for device in "ab":
        with pytest.raises(UndecidedError) if device == "a" else nullcontext():
            session.join(joining(device), 1.0)
    assert (session.step.number, session.fingerprint, list(session.members)) == (0, (SPEC,), ["b"])
    assert not session.members.lost  # nobody waits for it at the end
    assert session.join(joining("a"), 1.0).standing is Standing.ACTIVE
    session.join(joining("c"), 1.0)
    assert session.phase is d.Phase.TRAINING


def test_who_leaves_while_the_session_gathers_takes_its_deadline_along():
    session = gathering(devices=2, join_deadline_s=10)
    session.join(joining("squatter", OTHER), 0.0)
    session.remove("squatter", "it left", 1.0)
    session.tick(11.0)
    assert session.phase is d.Phase.GATHERING
    session.join(joining("a"), 12.0)
    session.tick(21.0)
    assert session.phase is d.Phase.GATHERING
    session.join(joining("b"), 21.0)
    assert session.phase is d.Phase.TRAINING


def test_a_stranger_that_says_to_have_finished_ends_nothing():
    session = gathering(devices=2)
    session.join(joining("squatter"), 0.0)
    session.finish("squatter", 0.0)
    assert session.phase is d.Phase.GATHERING
    session = gathering(devices=3, quorum=2, rejoin_deadline_s=30)
    for device in "abc":
        session.join(joining(device), 0.0)
    session.finish("c", 1.0)
    for device in "ab":
        session.complete(device, 0, Contribution(1, 0.5), 2.0)
    session.advance(2.0)
    session.remove("b", "its battery was empty", 3.0)
    session.complete("a", 1, Contribution(1, 0.5), 4.0)  # it is not told that all others have finished
    session.join(joining("b"), 5.0)
    assert session.phase is d.Phase.TRAINING


def test_others_wait_for_the_device_whose_model_it_is_and_take_it():
    session = gathering(devices=2, model_of="reference")
    with pytest.raises(UndecidedError, match=r"'a' waits .* device 'reference', .* \(--model-of\), has not come"):
        session.join(joining("a", OTHER), 0.0)
    session.join(joining("reference"), 1.0)
    with pytest.raises(RefusedError, match="its model differs") as refusal:
        session.join(joining("a", OTHER), 2.0)
    assert refusal.value.status is Status.FAILED_PRECONDITION
    session.join(joining("b"), 3.0)
    assert session.phase is d.Phase.TRAINING


def test_nobody_waits_for_ever_for_the_device_whose_model_it_is():
    session = gathering(devices=2, model_of="reference", join_deadline_s=20)
    for now in (0.0, 10.0):
        with pytest.raises(UndecidedError):
            session.join(joining("a"), now)
    with pytest.raises(RefusedError, match=r"'reference', whose model .* did not come in 20 s") as refusal:
        session.join(joining("a"), 20.0)
    assert refusal.value.status is Status.FAILED_PRECONDITION


def test_other_frozen_weights_are_another_model_and_rounding_is_none():
    def tuned(device: str, value: float) -> Joining:
        sketch = sketch_of({"w": torch.full((4,), value)}, 0)
        return joining(device, options={"frozen_weights": f"{value!r}"}, frozen_sketch=sketch)

    session = gathering()
    session.join(tuned("squatter", 9.0), 0.0)
    for device, value in (("a", 2.0), ("b", 2.0 + 1e-6)):
        with pytest.raises(UndecidedError):
            session.join(tuned(device, value), 1.0)
    session.join(tuned("c", 2.0 + 2e-6), 1.0)
    assert session.members.keys() == {"c"}
    for device, value in (("a", 2.0), ("b", 2.0 + 1e-6)):
        session.join(tuned(device, value), 2.0)


def test_two_models_have_two_fingerprints():
    whole, other = (
        TensorSpec(
            "v", (6,), kind="delta", parts=(TensorSpec("w", shape, kind="delta"), TensorSpec("b", (2,), kind="delta"))
        )
        for shape in ((4,), (2, 2))
    )
    prints = [
        model_fingerprint(specs, options)
        for specs, options in (
            ((SPEC,), {}),
            ((SPEC, OTHER), {}),
            ((OTHER, SPEC), {}),
            ((TensorSpec("fc.weight", (3, 2)),), {}),
            ((TensorSpec("fc.weight", (2, 3), dtype="bfloat16"),), {}),
            ((TensorSpec("fc.weight", (2, 3), kind="delta"),), {}),
            ((whole,), {}),
            ((other,), {}),
            ((SPEC,), {"lr": "0.1"}),
            ((SPEC,), {"lr": "0.2"}),
        )
    ]
    assert len(set(prints)) == len(prints)
    assert model_fingerprint((SPEC,), {"a": "1", "b": "2"}) == model_fingerprint((SPEC,), {"b": "2", "a": "1"})
    assert model_fingerprint((SPEC,), {"frozen_weights": "x"}) == prints[0]


# ---------------------------------------------------------------- what is recorded


def test_a_forgotten_model_is_forgotten_on_disk_and_one_with_steps_is_not(tmp_path):
    record = Record(tmp_path / "record.sqlite")
    directory = Directory(record)
    directory.create("s", SessionSettings(devices=2))
    room = directory.find("s")
    squatter = room.join(joining("squatter", OTHER), 0.0)
    (known,) = record.resumable()
    assert known.fingerprint == (OTHER,)
    again = Directory(record).resume(known)
    assert again.fingerprint == ()  # before the first step nobody holds a model
    room.leave("squatter", squatter.token, 1.0, finished=False, reason="")
    assert record.resumable()[0].fingerprint == ()
    for device in "ab":
        room.join(joining(device), 2.0)
    known = record.resumable()[0]
    assert (known.fingerprint, known.phase) == ((SPEC,), d.Phase.TRAINING)
    resumed = Directory(record).resume(known)
    with pytest.raises(RefusedError, match="its model differs"):
        resumed.join(joining("squatter", OTHER), 3.0)
    resumed.join(joining("a"), 3.0)
    resumed.remove("a", "it left", 3.0)
    assert resumed.fingerprint == (SPEC,)
    record.close()
