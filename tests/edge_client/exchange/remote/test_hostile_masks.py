"""Messages about masks that no honest device sends: they cost their sender its place at most, and nobody a step."""

from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from bare_client import Device
from edgenewton.v1 import exchange_pb2 as pb
from edgenewton.v1 import exchange_pb2_grpc
from test_secure_aggregation import assert_identical, model_of, train

from coordinator.serving.server import embedded_coordinator
from coordinator.session.settings import SessionSettings
from edge_client.exchange import ExchangeError


@pytest.fixture
def coordinator():
    with embedded_coordinator() as embedded:
        yield embedded


def saying(field, change):
    """Return what makes a device say something else in step 3, or say something more."""

    def act(optimizer, step):
        if step != 1:
            return
        membership = optimizer._sync._membership
        masking, link = membership._masking, membership._link
        answer, ahead = masking.answer, masking.keys_ahead
        # So that it is asked for them.
        masking.keys_ahead = lambda of, circle: None if of == 3 else ahead(of, circle)

        def answered(frame):
            said = answer(frame)
            if said is not None and said.HasField(field) and said.step == 3:
                link._answers.extend(more.SerializeToString() for more in change(said) or ())
            return said

        masking.answer = answered

    return act


def run_with(coordinator, act, step_deadline_s=20):
    """Train with four devices, of which d1 acts; return how it ended for it."""
    settings = SessionSettings(devices=4, quorum=3, step_deadline_s=step_deadline_s, secure_aggregation=True)
    coordinator.create_session("s", settings)
    models = [model_of() for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        nothing = lambda optimizer, step: None  # noqa: E731
        futures = [
            pool.submit(train, coordinator, d, steps=6, model=models[d], act=act if d == 1 else nothing)
            for d in range(4)
        ]
        assert_identical([future.result() for d, future in enumerate(futures) if d != 1])
        return futures[1]


def of_a_megabyte(said):
    said.step_keys.boxes = bytes(1 << 20)


def too_short(said):
    said.step_keys.public = b"x"


def of_other_neighbours(said):
    said.step_keys.boxes = said.step_keys.boxes[:-80]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (of_a_megabyte, "a frame has more than 262144 bytes besides its slices"),
        (too_short, "wrong length"),
        (of_other_neighbours, "step keys for other neighbours than its own"),
    ],
)
def test_keys_that_are_none_cost_their_device_its_place(coordinator, change, text):
    ended = run_with(coordinator, saying("step_keys", change))
    with pytest.raises(ExchangeError, match=f"device 'd1'.*{text}"):
        ended.result()


def telling_ahead(change):
    """Return what makes a device tell other keys with its contributions."""

    def act(optimizer, step):
        if step == 1:
            masking = optimizer._sync._membership._masking
            ahead = masking.keys_ahead
            masking.keys_ahead = lambda of, circle: change(ahead, of, circle)

    return act


def ahead_of_other_neighbours(ahead, step, circle):
    keys = ahead(step, circle)
    keys.boxes = keys.boxes[:-80]
    return keys


def test_keys_ahead_that_are_none_cost_their_device_its_place(coordinator):
    ended = run_with(coordinator, telling_ahead(ahead_of_other_neighbours))
    with pytest.raises(ExchangeError, match="device 'd1'.*step keys for other neighbours than its own"):
        ended.result()


def test_who_tells_no_keys_ahead_is_asked(coordinator):
    run_with(coordinator, telling_ahead(lambda ahead, step, circle: None)).result()


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("revealed", lambda said: [said, said]),
        (
            "revealed",
            lambda said: [pb.Frame(step=99, revealed=said.revealed), pb.Frame(step=1, revealed=said.revealed)],
        ),
        ("step_keys", lambda said: [pb.Frame(step=99, step_keys=said.step_keys)]),
        ("step_keys", lambda said: [pb.Frame(step=3, revealed=pb.Revealed(public=said.step_keys.public))]),
        ("step_keys", lambda said: [said, pb.Frame(step=3, step_keys=pb.StepKeys())]),
    ],
)
def test_what_comes_twice_too_early_or_too_late_is_dropped(coordinator, field, change):
    run_with(coordinator, saying(field, change)).result()


def test_a_session_without_masks_takes_neither_keys_nor_shares(coordinator):
    with grpc.insecure_channel(coordinator.address) as channel:
        stub = exchange_pb2_grpc.GradientExchangeStub(channel)
        for number, frame in enumerate((pb.Frame(step_keys=pb.StepKeys()), pb.Frame(revealed=pb.Revealed()))):
            name = f"plain-{number}"
            coordinator.create_session(name, SessionSettings(devices=1))
            device = Device(stub, "m", session=name)
            device.send(frame)
            assert "has no secure aggregation" in device.error().details()


def test_what_is_kept_of_devices_and_rounds_does_not_grow(coordinator):
    """Neither with the steps nor with those that come and go."""
    run_with(coordinator, lambda optimizer, step: None).result()
    room = coordinator.directory.find("s")
    assert not room._masking_mail._told
