"""State takeover: a device that says to be further than its session knows gives its weights to nobody unasked."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace

import grpc
import pytest
import torch
from bare_client import SPEC, Device, join_request, refused, wait_until_open
from edgenewton.v1 import exchange_pb2 as pb
from local_devices import plain_model, take

from coordinator.serving.server import embedded_coordinator
from coordinator.session import decisions as d
from coordinator.session.admission import Admission
from coordinator.session.members import Joining, Standing
from coordinator.session.refusal import RefusedError, Status, UndecidedError
from coordinator.session.session import Session
from coordinator.session.settings import SessionSettings
from edge_client import EveryBatch, GradientExchange, NewtonOptimizer
from edge_client.exchange import ExchangeError
from edge_client.sync.sketching import sketch_of


def joining(device: str, next_step: int | None = None, digest: bytes = b"fresh", token: str = "") -> Joining:
    return Joining(device, (SPEC,), {}, digest, next_step=next_step, token=token)


def gathering(devices: int = 4, **settings) -> Session:
    return Session("s", SessionSettings(devices=devices, **settings))


# ---------------------------------------------------------------- on a real port


def test_a_device_that_says_to_be_further_makes_nobody_heal_and_is_refused(coordinator, stub):
    coordinator.create_session("s", SessionSettings(devices=3, quorum=2))
    session = coordinator.directory.find("s").session
    first = Device(stub, "a", weights_digest=b"fresh")
    wait_until_open(coordinator, "a")
    with ThreadPoolExecutor(1) as pool:
        claim = pool.submit(
            refused, lambda: stub.Join(join_request("evil", next_step=1_000, weights_digest=b"evil"), timeout=20)
        )
        second = Device(stub, "b", weights_digest=b"fresh")
        code, details = claim.result()
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert details == (
        "device 'evil' cannot join session 's': it comes with a state of step 1000, but the session knows nothing "
        "beyond step 0. To go on from there, start the coordinator with the session's --record and --resume, or with "
        "--trust-state-of evil, whose state all others take over then; or start the device without its state"
    )
    assert session.step.number == 0
    assert session.members.standing(Standing.ACTIVE) == ["a", "b"]
    third = Device(stub, "c", weights_digest=b"fresh")
    for device in (first, second, third):
        device.send_gradient(0, 1.0)
    for device in (first, second, third):
        frame = next(device.stream)
        assert not frame.HasField("heal")
        assert frame.commit.devices == 3


def test_devices_go_on_together_on_a_coordinator_that_remembers_nothing():
    """Their coordinator was lost with all that it knew: most of them have the same state, and nobody has to help."""
    settings = SessionSettings(devices=3, rejoin_deadline_s=30)
    models = [plain_model() for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        with embedded_coordinator() as first:
            first.create_session("s", settings)
            port = int(first.address.rpartition(":")[2])
            places = [connected(first.address, number, model) for number, model in enumerate(models)]
            list(pool.map(lambda place: [take(place[1], place[2]) for _ in range(3)], places))
            lose(first)
        with embedded_coordinator(port=port) as second:
            second.create_session("s", settings)
            list(pool.map(lambda place: [take(place[1], place[2]) for _ in range(3)], places))
            session = second.directory.find("s").session
            assert session.step.number == 6
            assert not second.directory.find("s").chronicle.statistics.refusals
            for exchange, _, _ in places:
                exchange.close()
    for model in models[1:]:
        assert all(map(torch.equal, model.parameters(), models[0].parameters()))


def connected(address: str, number: int, model) -> tuple[GradientExchange, NewtonOptimizer, int]:
    exchange = GradientExchange.connect(address, session="s", device=f"d{number}")
    return exchange, NewtonOptimizer(model, sync=EveryBatch(exchange), lr=0.05), number


def lose(coordinator) -> None:
    """End a coordinator's streams as if it had died: none of its sessions is over."""

    async def suspend() -> None:
        coordinator.directory.suspend("lost")

    coordinator._call(suspend())


def test_one_of_two_devices_with_an_old_state_is_told_what_to_do(coordinator):
    coordinator.create_session("s", SessionSettings(devices=2))
    fresh = connected(coordinator.address, 0, plain_model())
    fresh[1].join()
    alone = NewtonOptimizer(plain_model(), lr=0.05)
    for _ in range(3):
        take(alone, 1)
    trained = connected(coordinator.address, 1, plain_model())
    trained[1].load_state_dict(alone.state_dict())
    with pytest.raises(ExchangeError, match=r"device 'd1' cannot join .* a state of step 3.* --trust-state-of d1"):
        trained[1].join()
    for exchange, _, _ in (fresh, trained):
        exchange.close()


def test_the_state_of_a_device_that_the_operator_trusts_is_taken_over(coordinator, stub):
    coordinator.create_session("s", SessionSettings(devices=2, trust_state_of=("b",)))
    a = Device(stub, "a", weights_digest=b"fresh")
    wait_until_open(coordinator, "a")
    b = Device(stub, "b", next_step=40, weights_digest=b"b")
    assert (b.reply.first_step, b.reply.snapshot) == (40, pb.SNAPSHOT_ACTION_NONE)
    assert next(a.stream).HasField("heal")


# ---------------------------------------------------------------- the state machine


def test_most_of_the_awaited_devices_decide_and_the_others_heal():
    session = gathering()
    assert session.join(joining("fresh"), 0.0).standing is Standing.ACTIVE
    for device in "ab":
        with pytest.raises(UndecidedError, match=f"device '{device}' waits .* a state of step 57.* 3 of the 4 awaited"):
            session.join(joining(device, 57, b"trained"), 1.0)
        assert session.step.number == 0
    assert session.members.standing(Standing.ACTIVE) == ["fresh"]
    for device in "cab":
        assert session.join(joining(device, 57, b"trained"), 2.0).standing is Standing.ACTIVE
    assert (session.phase, session.step.number) == (d.Phase.TRAINING, 57)
    healing = [x for x in session.take_decisions() if isinstance(x, d.DeviceHealing)]
    assert [(x.device, x.must_be_told) for x in healing] == [("fresh", True)]


def test_states_of_one_step_that_differ_do_not_add_up():
    session = gathering(devices=5)
    for device in "abc":
        with pytest.raises(UndecidedError):
            session.join(joining(device, 57, device.encode()), 0.0)
    # One that only lost its connection says nothing of its weights, and may have those of any.
    with pytest.raises(UndecidedError):
        session.join(joining("d", 57, b"", token="of an earlier coordinator"), 0.0)
    assert (session.step.number, not session.members) == (0, True)
    session.join(joining("e", 57, b"c"), 0.0)  # with that of "c", and what "d" may have
    assert session.step.number == 57


def test_devices_that_each_have_weights_of_their_own_go_on_from_the_first():
    """As with local curvature: nobody can tell them from others; but the first does not decide before all are here."""
    session = gathering(devices=3)
    for device in "ab":
        with pytest.raises(UndecidedError):
            session.join(joining(device, 57, device.encode()), 0.0)
    assert session.join(joining("c", 57, b"c"), 0.0).standing is Standing.HEALING
    assert session.join(joining("a", 57, b"a"), 0.0).standing is Standing.ACTIVE
    assert session.join(joining("b", 57, b"b"), 0.0).standing is Standing.HEALING


def test_states_that_differ_by_rounding_add_up():
    weights = {device: torch.full((6,), 2.0 + by) for device, by in zip("abcd", (0, 1e-6, 0.1, 2e-6), strict=True)}
    session = gathering()
    for device in "abc":
        with pytest.raises(UndecidedError):
            session.join(told(device, weights[device]), 0.0)
    assert session.join(told("d", weights["d"]), 0.0).standing is Standing.ACTIVE
    assert session.join(told("c", weights["c"]), 0.0).standing is Standing.HEALING


def told(device: str, weights: torch.Tensor) -> Joining:
    """Return a device that tells its weights as a real one does."""
    return replace(joining(device, 57, device.encode()), sketch=sketch_of({"fc.weight": weights}, 57))


@pytest.mark.parametrize("last", [b"trained", b""])
def test_whoever_says_to_be_at_the_same_step_with_other_weights_heals(last):
    session = gathering()
    for device, digest in (("a", b"trained"), ("b", b"trained"), ("c", last)):
        with pytest.raises(UndecidedError) if device != "c" else nullcontext():
            session.join(joining(device, 57, digest), 1.0)
    assert session.join(joining("evil", 57, b"evil"), 1.0).standing is Standing.HEALING
    assert session.join(joining("a", 57, b"trained"), 1.0).standing is Standing.ACTIVE


@pytest.mark.parametrize("earlier", [3, 56, None])
def test_nobody_comes_first_with_an_earlier_state_once_most_have_said_where_they_are(earlier):
    session = gathering()
    for device in "abc":
        with pytest.raises(UndecidedError) if device != "c" else nullcontext():
            session.join(joining(device, 57, b"trained"), 0.0)
    session.members.clear()  # who made the majority is gone before the others come
    assert session.join(joining("evil", earlier, b"evil"), 1.0).standing is Standing.HEALING
    assert session.step.number == 57
    assert session.join(joining("a", 57, b"trained"), 1.0).standing is Standing.ACTIVE


def test_a_claim_that_cannot_win_any_more_is_refused_at_once_and_one_that_may_in_time():
    session = gathering(join_deadline_s=60, quorum=2)
    with pytest.raises(UndecidedError) as first:
        session.join(joining("evil", 9), 0.0)
    assert first.value.is_new
    for now in (25.0, 50.0):
        with pytest.raises(UndecidedError) as again:
            session.join(joining("evil", 9), now)
        assert not again.value.is_new
    with pytest.raises(RefusedError, match="device 'evil' cannot join .* a state of step 9") as late:
        session.join(joining("evil", 9), 60.0)
    assert late.value.status is Status.FAILED_PRECONDITION
    for device in "ab":
        session.join(joining(device), 61.0)
    with pytest.raises(RefusedError) as hopeless:
        session.join(joining("evil", 9), 61.0)
    assert hopeless.value.status is Status.FAILED_PRECONDITION


def test_those_that_do_not_ask_again_count_no_more():
    session = gathering(lease_s=20)
    for device, now in (("a", 0.0), ("b", 25.0), ("c", 31.0)):  # by then the first is gone
        with pytest.raises(UndecidedError):
            session.join(joining(device, 57), now)


def test_only_so_many_wait():
    session = gathering()
    for number in range(8):
        with pytest.raises(UndecidedError):
            session.join(joining(f"evil-{number}", number + 1), 0.0)
    with pytest.raises(RefusedError, match="8 devices do so already") as refusal:
        session.join(joining("evil-8", 9), 0.0)
    assert refusal.value.status is Status.RESOURCE_EXHAUSTED
    assert session.join(joining("a"), 0.0).standing is Standing.ACTIVE  # whoever claims nothing is not concerned


def begun() -> Session:
    session = gathering(devices=2, max_devices=3)
    for device in "ab":
        session.join(joining(device), 0.0)
    return session


def test_in_training_a_saved_state_from_beyond_is_refused():
    session = begun()
    with pytest.raises(
        RefusedError, match="a state of step 12, but the session knows nothing beyond step 0"
    ) as refusal:
        session.join(joining("c", 12), 1.0)
    assert refusal.value.status is Status.FAILED_PRECONDITION
    own = session.members["a"].token
    with pytest.raises(RefusedError, match="a state of step 12"):
        session.join(joining("a", 12, token=own), 1.0)


def test_a_device_that_outlived_its_coordinator_heals_and_nobody_goes_on_from_its_state():
    session = begun()
    assert session.join(joining("c", 12, b"", token="of an earlier coordinator"), 1.0).standing is Standing.HEALING
    assert session.members.furthest() is None


def test_a_record_that_lost_its_last_steps_is_overruled_by_most():
    session = gathering()
    session.restore(Admission("s", session.settings), 57, list("abcd"))
    assert session.join(joining("a", 57), 0.0).standing is Standing.ACTIVE
    session.remove("a", "it left", 0.0)
    for device in "ab":
        with pytest.raises(UndecidedError, match="knows nothing beyond step 57"):
            session.join(joining(device, 60), 0.0)
    session.join(joining("c", 60), 0.0)
    assert session.step.number == 60


# ---------------------------------------------------------------- of the step that the session knows


@pytest.mark.parametrize("past", [None, 40])
@pytest.mark.parametrize("is_first", [False, True])
def test_weights_of_the_first_step_that_one_device_alone_has_are_given_to_nobody_in_the_end(past, is_first):
    """As in a Flower round: all honest devices have the weights that the round began with."""
    session = gathering(first_step=40)
    if is_first:
        session.join(joining("evil", past, b"evil"), 0.0)
    for device in "ab":
        session.join(joining(device, None, b"round"), 1.0)
    if not is_first:
        session.join(joining("evil", past, b"evil"), 2.0)
    assert session.members["evil"].standing is Standing.HEALING
    session.healed("a", 40)
    session.join(joining("c", None, b"round"), 3.0)
    assert session.members["b"].standing is session.members["c"].standing is Standing.ACTIVE
    assert (session.phase, session.step.number) == (d.Phase.TRAINING, 40)


def test_who_has_taken_the_first_weights_over_stands_by_them():
    """Each device has weights of its own, as it is where nobody gave them any."""
    session = gathering()
    session.join(joining("first", None, b"1"), 0.0)
    for device, digest in (("a", b"2"), ("b", b"3")):
        assert session.join(joining(device, None, digest), 1.0).standing is Standing.HEALING
        session.healed(device, 0)
    session.remove("first", "it left", 2.0)
    assert session.join(joining("c", None, b"4"), 3.0).standing is Standing.HEALING
    assert session.members.standing(Standing.ACTIVE) == ["a", "b"]


def test_what_was_handed_in_of_a_state_that_was_outvoted_reaches_nobody(coordinator, stub):
    coordinator.create_session("s", SessionSettings(devices=3, quorum=2))
    evil = Device(stub, "evil", weights_digest=b"evil")
    wait_until_open(coordinator, "evil")
    first = Device(stub, "a", weights_digest=b"honest")
    assert first.reply.snapshot == pb.SNAPSHOT_ACTION_DOWNLOAD
    next(frame for frame in evil.stream if frame.HasField("snapshot_wanted"))
    second = Device(stub, "b", weights_digest=b"honest")
    assert second.reply.snapshot == pb.SNAPSHOT_ACTION_NONE
    code, details = refused(lambda: stub.UploadSnapshot(chunks(b"evil"), metadata=evil.metadata, timeout=5))
    assert (code, details) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "device 'evil' hands in a state that nobody asked for",
    )
    next(frame for frame in second.stream if frame.HasField("snapshot_wanted"))
    stub.UploadSnapshot(chunks(b"honest"), metadata=second.metadata, timeout=5)
    received = stub.DownloadSnapshot(pb.SnapshotRequest(), metadata=first.metadata, timeout=5)
    assert b"".join(chunk.data for chunk in received) == b"honest"


def chunks(data: bytes):
    header = pb.SnapshotHeader(step=0, size=len(data), sha256=hashlib.sha256(data).digest())
    return iter([pb.SnapshotChunk(header=header, data=data)])
