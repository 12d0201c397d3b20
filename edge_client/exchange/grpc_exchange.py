"""The exchange over gRPC, through a coordinator."""

import hashlib
import logging
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Self

import grpc
import numpy as np
import torch
from edgenewton.v1 import MAX_MESSAGE_BYTES, PROTOCOL_VERSION, TOKEN_METADATA_KEY, exchange_pb2_grpc
from edgenewton.v1 import exchange_pb2 as pb
from edgenewton.v1.codec import Codec, Float32Array, codec_by_number
from edgenewton.v1.fingerprint import TensorSpec
from edgenewton.v1.framing import FramePacker, make_slices, read_slice
from torch import Tensor

from edge_client.exchange.errors import Cause, ExchangeError, NonFiniteGradientError
from edge_client.exchange.interface import Evaluation, StepResult, TensorKey, Traffic

log = logging.getLogger(__name__)

_OPTIONS = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    # A session aborted while this process restarts should be joined again quickly.
    ("grpc.max_reconnect_backoff_ms", 2_000),
]
_SNAPSHOT_CHUNK_BYTES = 1 << 20
_MARGIN_S = 10.0
"""The coordinator's own deadlines come first; ours only end the wait for a coordinator that hangs."""

_CAUSES = {
    grpc.StatusCode.UNAVAILABLE: Cause.UNREACHABLE,
    grpc.StatusCode.CANCELLED: Cause.UNREACHABLE,
    grpc.StatusCode.INVALID_ARGUMENT: Cause.INVALID,
    grpc.StatusCode.DEADLINE_EXCEEDED: Cause.LEFT_OUT,
    grpc.StatusCode.ABORTED: Cause.ABORTED,
}


class GradientExchange:
    """A device's place in a session of a coordinator."""

    def __init__(self, channel: grpc.Channel, address: str, session: str, device: str) -> None:
        self.device = device
        self.session = session
        self.address = address
        self.step = 0
        self.traffic = Traffic()
        self._channel = channel
        self._stub = exchange_pb2_grpc.GradientExchangeStub(channel)
        self._token = ""
        self._specs: tuple[TensorSpec, ...] = ()
        self._index: dict[TensorKey, int] = {}
        self._codec: Codec
        self._settings = pb.ExchangeSettings()
        self._samples = 0
        self._packer: FramePacker | None = None
        self._contributed: set[int] = set()
        self._outgoing: queue.SimpleQueue[pb.Frame | None] = queue.SimpleQueue()
        self._receiver: _Receiver | None = None

    @classmethod
    def join(cls, address: str, *, session: str, device: str, connect_timeout_s: float = 5.0) -> "GradientExchange":
        """Connect to the coordinator at `address` (host:port), to take the place of `device` in `session`.

        The place itself is taken when an optimizer is made with the exchange, because it depends on the model.

        Raises:
            ExchangeError: nothing answers at `address` within `connect_timeout_s`.

        """
        channel = grpc.insecure_channel(address, options=_OPTIONS)
        try:
            grpc.channel_ready_future(channel).result(timeout=connect_timeout_s)
        except grpc.FutureTimeoutError:
            channel.close()
            raise ExchangeError(
                f"no coordinator answers at {address} within {connect_timeout_s:g} s. Is the address right, and "
                "`edge-coordinator serve` running there?",
                Cause.UNREACHABLE,
            ) from None
        return cls(channel, address, session, device)

    def start(
        self,
        tensors: Sequence[TensorSpec],
        options: Mapping[str, str],
        dump_weights: Callable[[], bytes],
        load_weights: Callable[[bytes], None],
        training_samples: int = 0,
    ) -> None:
        """Take the place: see `Exchange.start`."""
        self._specs = tuple(tensors)
        self._index = {(spec.kind, spec.name): index for index, spec in enumerate(self._specs)}
        weights = dump_weights()
        request = pb.JoinRequest(
            protocol_version=PROTOCOL_VERSION,
            session=self.session,
            device=self.device,
            tensors=[spec.to_proto() for spec in self._specs],
            training_samples=training_samples,
            options=dict(options),
            weights_digest=hashlib.sha256(weights).digest(),
            software=f"edgenewton {version('edgenewton')}",
        )
        try:
            reply = self._stub.Join(request, timeout=_MARGIN_S)
            self._settings = reply.settings
            self._codec = codec_by_number(reply.settings.codec)
            self._token = reply.token
            self.step = reply.first_step
            self._count(sent=request.ByteSize(), received=reply.ByteSize())
            # The stream is this device's presence; a snapshot may take long.
            stream = self._stub.Exchange(iter(self._outgoing.get, None), metadata=self._metadata())
            self._receiver = _Receiver(self._specs, self._codec, self._settings.frame_bytes, stream)
            if reply.snapshot == pb.SNAPSHOT_ACTION_UPLOAD:
                self._upload(weights)
            elif reply.snapshot == pb.SNAPSHOT_ACTION_DOWNLOAD:
                load_weights(self._download())
        except grpc.RpcError as error:
            raise self._explain(error) from None

    def begin(self, samples: int) -> None:
        """Begin the next step: see `Exchange.begin`."""
        self._samples = samples
        self._packer = FramePacker(self.step, samples, self._settings.frame_bytes)
        self._contributed = set()
        self._require_receiver().forget_commit()

    def contribute(self, key: TensorKey, value: Tensor) -> None:
        """Send one tensor: see `Exchange.contribute`."""
        if self._packer is None:
            raise ExchangeError(f"device {self.device!r}: begin a step before contributing to it", Cause.INVALID)
        index = self._index[key]
        spec = self._specs[index]
        self._raise_if_failed()
        if not value.isfinite().all():
            raise NonFiniteGradientError(self.device, str(spec), self.step)
        self._contributed.add(index)
        flat = _to_numpy(value)
        for piece in make_slices(index, spec, self._codec, self._settings.frame_bytes, flat):
            full = self._packer.add(piece)
            if full is not None:
                self._send(full)
            if self._packer.is_full:
                self._send(self._packer.take())

    def collect(self, loss: float, evaluation: Evaluation | None = None) -> StepResult:
        """End the contribution and wait for the commit: see `Exchange.collect`."""
        if self._packer is None:
            raise ExchangeError(f"device {self.device!r}: begin a step before collecting it", Cause.INVALID)
        frame = self._packer.take()
        self._packer = None
        frame.contribution.loss = loss
        if evaluation is not None:
            frame.contribution.evaluation.CopyFrom(
                pb.Evaluation(correct=evaluation.correct, samples=evaluation.samples, loss=evaluation.loss)
            )
        self._send(frame)
        # The first step also waits for the other devices to join.
        wait_s = self._settings.step_deadline_s + self._settings.join_deadline_s + _MARGIN_S
        receiver = self._require_receiver()
        commit = receiver.wait_for_commit(wait_s)
        if commit is None:
            self._raise_if_failed()
            raise ExchangeError(
                f"device {self.device!r}, step {self.step}: the coordinator at {self.address} neither committed nor "
                f"ended the step within {wait_s:g} s",
                Cause.TIMEOUT,
            )
        tensors = {
            (self._specs[index].kind, self._specs[index].name): _to_tensor(values, self._specs[index])
            for index, values in receiver.take().items()
            if index in self._contributed
        }
        self._count(received=receiver.take_bytes())
        missing = self._contributed - {self._index[key] for key in tensors}
        if missing:
            raise ExchangeError(
                f"device {self.device!r}, step {self.step}: the step was committed without the "
                f"{self._specs[min(missing)]}",
                Cause.INVALID,
            )
        result = StepResult(self.step, tensors, commit.samples, commit.devices, commit.loss)
        self.step += 1
        return result

    def resume_at(self, step: int) -> None:
        """Nothing: the coordinator has set the step."""

    def close(self, failure: str = "") -> None:
        """Leave the session and close the connection; never raises for a coordinator that is gone."""
        if self._token:
            request = pb.LeaveRequest(
                session=self.session, device=self.device, token=self._token, reason=failure, finished=not failure
            )
            try:
                self._stub.Leave(request, timeout=2.0)
            except grpc.RpcError as error:
                log.debug("device %r could not say goodbye: %s", self.device, error)
            self._token = ""
        self._outgoing.put(None)
        if self._receiver is not None:
            self._receiver.join(timeout=2.0)
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.close(failure="" if error is None else f"{type(error).__name__}: {error}")

    # ------------------------------------------------------------------ inner workings

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        return ((TOKEN_METADATA_KEY, self._token),)

    def _require_receiver(self) -> "_Receiver":
        if self._receiver is None:
            raise ExchangeError(f"device {self.device!r} has not started its exchange", Cause.INVALID)
        return self._receiver

    def _send(self, frame: pb.Frame) -> None:
        self._count(sent=frame.ByteSize())
        self._outgoing.put(frame)

    def _count(self, sent: int = 0, received: int = 0) -> None:
        self.traffic = Traffic(self.traffic.sent + sent, self.traffic.received + received)

    def _upload(self, weights: bytes) -> None:
        def chunks() -> Iterator[pb.SnapshotChunk]:
            header = pb.SnapshotHeader(step=self.step, size=len(weights), sha256=hashlib.sha256(weights).digest())
            yield pb.SnapshotChunk(header=header)
            for begin in range(0, len(weights), _SNAPSHOT_CHUNK_BYTES):
                yield pb.SnapshotChunk(data=weights[begin : begin + _SNAPSHOT_CHUNK_BYTES])

        timeout = self._settings.join_deadline_s + _MARGIN_S
        self._stub.UploadSnapshot(chunks(), metadata=self._metadata(), timeout=timeout)
        self._count(sent=len(weights))

    def _download(self) -> bytes:
        timeout = self._settings.join_deadline_s + _MARGIN_S
        header: pb.SnapshotHeader | None = None
        data = bytearray()
        for chunk in self._stub.DownloadSnapshot(pb.SnapshotRequest(), metadata=self._metadata(), timeout=timeout):
            header = header or chunk.header
            data += chunk.data
        self._count(received=len(data))
        if header is None or hashlib.sha256(data).digest() != header.sha256:
            raise ExchangeError(
                f"device {self.device!r}: the snapshot of session {self.session!r} arrived damaged; join again",
                Cause.INVALID,
            )
        return bytes(data)

    def _raise_if_failed(self) -> None:
        receiver = self._require_receiver()
        if receiver.failure is not None:
            raise self._explain(receiver.failure)

    def _explain(self, error: Exception) -> ExchangeError:
        if not isinstance(error, grpc.Call):
            return ExchangeError(f"device {self.device!r}, session {self.session!r}: {error}", Cause.ABORTED)
        code, details = error.code(), str(error.details())
        if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
            details = f"device {self.device!r} lost the coordinator at {self.address} ({details})"
        return ExchangeError(details, _CAUSES.get(code, Cause.REFUSED))


class _Receiver:
    """Reads the stream in a thread of its own and puts slices together while the device still computes."""

    def __init__(self, specs: tuple[TensorSpec, ...], codec: Codec, frame_bytes: int, call: Iterable[pb.Frame]) -> None:
        self.failure: Exception | None = None
        self._specs = specs
        self._codec = codec
        self._frame_bytes = frame_bytes
        self._call = call
        self._changed = threading.Condition()
        self._tensors: dict[int, Float32Array] = {}
        self._commit: pb.Commit | None = None
        self._bytes = 0
        self._is_over = False
        self._thread = threading.Thread(target=self._read, name="exchange receiver", daemon=True)
        self._thread.start()

    def forget_commit(self) -> None:
        """Wait for the next step's commit from now on."""
        with self._changed:
            self._commit = None

    def wait_for_commit(self, timeout_s: float) -> pb.Commit | None:
        """Return the commit of the step that is on, or None when the stream or the time is over."""
        with self._changed:
            self._changed.wait_for(lambda: self._commit is not None or self._is_over, timeout_s)
            return self._commit

    def take(self) -> dict[int, Float32Array]:
        """Return the tensors of the committed step, by number."""
        tensors, self._tensors = self._tensors, {}
        return tensors

    def take_bytes(self) -> int:
        """Return the bytes received since the last call."""
        count, self._bytes = self._bytes, 0
        return count

    def join(self, timeout: float) -> None:
        """Wait for the thread to end."""
        self._thread.join(timeout)

    def _read(self) -> None:
        failure: Exception = RuntimeError("the session is over")
        try:
            for frame in self._call:
                self._take_frame(frame)
        except (grpc.RpcError, ValueError) as error:
            failure = error
        with self._changed:
            self.failure = failure
            self._is_over = True
            self._changed.notify_all()

    def _take_frame(self, frame: pb.Frame) -> None:
        self._bytes += frame.ByteSize()
        for piece in frame.slices:
            values = read_slice(piece, self._specs, self._codec, self._frame_bytes)
            size = self._specs[piece.tensor].size
            target = self._tensors.setdefault(piece.tensor, np.empty(size, dtype=np.float32))
            target[piece.offset : piece.offset + piece.length] = values
        if frame.HasField("commit"):
            with self._changed:
                self._commit = frame.commit
                self._changed.notify_all()


def _to_numpy(value: Tensor) -> Float32Array:
    return value.detach().to(device="cpu", dtype=torch.float32).contiguous().view(-1).numpy()


def _to_tensor(values: Float32Array, spec: TensorSpec) -> Tensor:
    return torch.from_numpy(values).view(spec.shape).to(getattr(torch, spec.dtype))
