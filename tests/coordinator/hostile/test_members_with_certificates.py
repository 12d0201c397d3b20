"""What a member cannot do, whether or not it has shown a certificate: one example of each kind.

All cases of each kind are in `test_hostage_steps`, `test_squatting` and `test_takeover`.
"""

from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from bare_client import Device, elements, gradient_frame, join_request, refused, wait_until_open
from edgenewton.v1 import exchange_pb2 as pb
from edgenewton.v1.tensor_spec import TensorSpec
from raw_client import assert_trains_on

INVALID = grpc.StatusCode.INVALID_ARGUMENT


def test_hostage_steps_are_few(target):
    session = target.session(step_deadline_s=0.3)
    hostage, a, b = (target.device(name, session) for name in ("hostage", "a", "b"))
    for step in range(12):
        frame = gradient_frame(step, 1.0)
        frame.ClearField("contribution")
        hostage.send(frame)
        assert_trains_on(a, b, step=step)
    assert target.room(session).chronicle.statistics.devices["hostage"].left_out <= 4
    for device in (hostage, a, b):
        device.end()


def test_a_later_state_is_no_reason_to_take_it_over(target):
    session = target.session()
    a = target.device("a", session, weights_digest=b"fresh")
    wait_until_open(target.coordinator, "a", session)
    request = join_request("m", session=session, next_step=1_000, weights_digest=b"evil")
    with ThreadPoolExecutor(1) as pool:
        claim = pool.submit(refused, lambda: target.stub("m").Join(request, timeout=20))
        b = target.device("b", session, weights_digest=b"fresh")
        code, details = claim.result()
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert "the session knows nothing beyond step 0" in details
    assert_trains_on(a, b, target.device("c", session, weights_digest=b"fresh"))


def test_a_model_is_not_that_of_who_came_first_and_left(target):
    session = target.session(devices=2)
    m = Device(target.stub("m"), "m", TensorSpec("squat.weight", (5, 5)), session)
    target.stub("m").Leave(pb.LeaveRequest(session=session, device="m", token=m.reply.token), timeout=5)
    assert_trains_on(*(target.device(name, session) for name in "ab"))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_reaches_nobody(target, value):
    session = target.session()
    m, a, b = (target.device(name, session) for name in "mab")
    m.send_gradient(0, value)
    error = m.error()
    assert error.code() is INVALID
    assert "device 'm', step 0" in error.details()
    for device in (a, b):
        device.send_gradient(0, 3.0)
    for device in (a, b):
        assert list(elements(next(device.stream))) == [3.0] * 6


def test_a_place_is_kept_by_its_token(target):
    """With certificates nobody even joins under another's name; in plaintext that takes the place, and is seen."""
    session = target.session(devices=2)
    a, b = (target.device(name, session) for name in "ab")
    leave = pb.LeaveRequest(session=session, device="a", token=b.reply.token)
    code, _ = refused(lambda: target.stub("m").Leave(leave, timeout=5))
    assert code is grpc.StatusCode.PERMISSION_DENIED
    if target.is_secured:
        code, details = refused(lambda: target.stub("m").Join(join_request("a", session=session), timeout=5))
        assert code is grpc.StatusCode.PERMISSION_DENIED
        assert "'a'" in details
    assert_trains_on(a, b)


def test_a_device_is_a_member_in_its_own_name_alone(target):
    session = target.session(devices=1, quorum=1)
    alone = Device(target.stub("a"), "a", session=session)
    code, details = target.raw("m").refusal("Exchange", b"", token="made up")
    assert code is grpc.StatusCode.PERMISSION_DENIED
    assert "token" in details
    if target.is_secured:  # the token of another is no use without its certificate
        code, _ = target.raw("m").refusal("Exchange", b"", token=alone.reply.token)
        assert code is grpc.StatusCode.PERMISSION_DENIED
    assert_trains_on(alone)
