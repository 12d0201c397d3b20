"""What devices say, in the state machine's own types, and where they stand, in the protocol's."""

from edgenewton.v1 import PROTOCOL_VERSION
from edgenewton.v1 import exchange_pb2 as pb
from edgenewton.v1.codecs import form_from_proto
from edgenewton.v1.evaluation import evaluation_from_proto
from edgenewton.v1.fingerprint import fingerprint_from_proto
from edgenewton.v1.limits import LimitError, peek_number, peek_text
from edgenewton.v1.sketch_message import sketch_from_proto
from google.protobuf.descriptor import Descriptor

from coordinator.session.cadence import Pace
from coordinator.session.members import Joining, Standing
from coordinator.session.refusal import RefusedError, Status, invalid
from coordinator.session.step import Contribution

MAX_ID_LENGTH = 128
"""Characters of a device's id."""

SNAPSHOT_ACTIONS = {
    Standing.ACTIVE: pb.SNAPSHOT_ACTION_NONE,
    Standing.LAGGING: pb.SNAPSHOT_ACTION_NONE,
    Standing.HEALING: pb.SNAPSHOT_ACTION_DOWNLOAD,
}


def unreadable(message: Descriptor, data: bytes, error: LimitError) -> tuple[RefusedError, str, str]:
    """Return why a request is refused that is over its limits, and the session and the device that it names."""
    session, device = (_named(message, name, data) for name in ("session", "device"))
    who = f"device {device!r}: " if device else ""
    if message is pb.JoinRequest.DESCRIPTOR:
        version = peek_number(data, message.fields_by_name["protocol_version"].number)
        if version not in (None, PROTOCOL_VERSION):  # what comes after it may be of that version
            return _other_version(device, version or 0), session, device
    return RefusedError(Status.INVALID_ARGUMENT, f"{who}{error}"), session, device


def _named(message: Descriptor, name: str, data: bytes) -> str:
    field = message.fields_by_name.get(name)
    return "" if field is None else peek_text(data, field.number, MAX_ID_LENGTH)


def _other_version(device: str, version: int) -> RefusedError:
    return RefusedError(
        Status.FAILED_PRECONDITION,
        f"device {device!r} speaks protocol version {version} and the coordinator version {PROTOCOL_VERSION}; install "
        "the same release on both",
    )


def joining_from_proto(request: pb.JoinRequest) -> Joining:
    """Return what a device says of itself.

    Raises:
        RefusedError: the device id, the version, an option, the fingerprint or the sketch is wrong.

    """
    if not request.device:
        raise RefusedError(Status.INVALID_ARGUMENT, "a device needs an id to join")
    if len(request.device) > MAX_ID_LENGTH or not request.device.isprintable():
        shown = request.device[:MAX_ID_LENGTH]
        raise RefusedError(
            Status.INVALID_ARGUMENT,
            f"a device's id has up to {MAX_ID_LENGTH} printable characters; this one begins {shown!r}",
        )
    # Before anything that another version may have changed.
    if request.protocol_version != PROTOCOL_VERSION:
        raise _other_version(request.device, request.protocol_version)
    for name, value in request.options.items():
        if not (name.isprintable() and value.isprintable()):
            raise RefusedError(
                Status.INVALID_ARGUMENT,
                f"device {request.device!r}: its option {name!r} has characters that cannot be printed",
            )
    try:
        fingerprint = fingerprint_from_proto(request.tensors)
        sketch = sketch_from_proto(request.sketch)
        frozen_sketch = sketch_from_proto(request.frozen_sketch)
    except ValueError as error:
        raise RefusedError(Status.INVALID_ARGUMENT, f"device {request.device!r}: {error}") from None
    return Joining(
        device=request.device,
        fingerprint=fingerprint,
        options=dict(request.options),
        weights_digest=request.weights_digest,
        training_samples=request.training_samples,
        software=request.software,
        codecs=tuple(request.codecs) or (pb.CODEC_FP32, pb.CODEC_FP16, pb.CODEC_BF16),
        next_step=request.next_step if request.HasField("next_step") else None,
        token=request.token,
        sketch=sketch,
        frozen_sketch=frozen_sketch,
        run_steps=request.run_steps if request.HasField("run_steps") else None,
        channel_key=request.channel_key if request.HasField("channel_key") else None,
    )


def samples_from_proto(device: str, frame: pb.Frame) -> int | None:
    """Return the samples behind a device's frame; None of a batch that it skips.

    Raises:
        RefusedError: it has samples and skips them.

    """
    if frame.samples and frame.skipped:
        raise invalid(device, frame.step, f"claims {frame.samples} samples of a batch that it skips")
    return None if frame.skipped else frame.samples


def contribution_from_proto(device: str, step: int, samples: int | None, message: pb.Contribution) -> Contribution:
    """Return a device's contribution to a step.

    Raises:
        RefusedError: the sketch in it is none.

    """
    try:
        sketch = sketch_from_proto(message.sketch)
    except ValueError as error:
        raise invalid(device, step, str(error)) from None
    evaluation = evaluation_from_proto(message.evaluation) if message.HasField("evaluation") else None
    return Contribution(
        samples,
        message.loss,
        evaluation,
        sketch,
        dict(message.hyperparameters),
        message.batches or 1,
        pace_from_proto(message.pace) if message.HasField("pace") else None,
        epsilon=message.epsilon if message.HasField("epsilon") else None,
    )


def pace_from_proto(message: pb.Pace) -> Pace:
    """Return what a device has measured."""
    form = form_from_proto(message.form)
    return Pace(
        message.batch_s, message.exchange_s, message.round_s, message.agreement, form, round_trip_s=message.round_trip_s
    )
