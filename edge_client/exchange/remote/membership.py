"""The exchange over gRPC, through a coordinator: what the device's own thread does; `Link` does the rest."""

import logging
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Self

import grpc
import torch
from edgenewton.common.evaluation import Evaluation
from edgenewton.common.failpoints import failpoint
from edgenewton.common.tls import TlsFiles
from edgenewton.common.tls_diagnosis import diagnose
from edgenewton.v1 import PROTOCOL_VERSION
from edgenewton.v1 import exchange_pb2 as pb
from edgenewton.v1.codecs import CODEC_NUMBERS, CodecChoice, Float32Array
from edgenewton.v1.evaluation import evaluation_to_proto
from edgenewton.v1.fingerprint import spec_to_proto
from edgenewton.v1.framing import FramePacker, Layout, SliceWriter, check_values
from edgenewton.v1.tensor_spec import TensorSpec
from torch import Tensor

from edge_client.exchange.errors import Cause, ExchangeError, NonFiniteGradientError
from edge_client.exchange.interface import Replica, StepResult, TensorKey, Traffic
from edge_client.exchange.remote.assembly import AssembledStep, Assembly
from edge_client.exchange.remote.connection import NoEntryError
from edge_client.exchange.remote.link import Link

log = logging.getLogger(__name__)

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

    def __init__(self, link: Link, session: str, device: str) -> None:
        self.device = device
        self.session = session
        self.step = 0
        self._link = link
        self._reconnect_wait_s = 0.0
        self._specs: tuple[TensorSpec, ...] = ()
        self._index: dict[TensorKey, int] = {}
        self._layout: Layout
        self._assembly: Assembly
        self._replica: Replica
        self._writer: SliceWriter
        self._settings = pb.ExchangeSettings()
        self._packer: FramePacker | None = None
        self._contributed: set[int] = set()
        self._is_joined = False

    @classmethod
    def join(
        cls,
        address: str,
        *,
        session: str,
        device: str,
        connect_timeout_s: float = 5.0,
        reconnect_deadline_s: float = 120.0,
        tls: TlsFiles | None = None,
    ) -> Self:
        """Connect to the coordinator at `address` (host:port), to take the place of `device` in `session`.

        The place itself is taken when an optimizer is made with the exchange, because it depends on the model. When
        the connection or the coordinator is lost later on, the exchange tries for `reconnect_deadline_s` to get back.

        With `tls` the device shows its certificate, whose name must be `device`. The files are read again for each new
        connection, so that a renewed certificate takes the place of the old one in a running session.

        Raises:
            ExchangeError: nothing answers at `address` within `connect_timeout_s`, the files of `tls` cannot be used,
                or the two sides do not trust each other.

        """
        link = Link(address, reconnect_deadline_s, tls)
        try:
            link.connect(connect_timeout_s)
        except NoEntryError as error:
            link.close()
            cause = Cause.REFUSED if error.is_refused else Cause.UNREACHABLE
            raise ExchangeError(f"device {device!r}: {error}" if error.is_refused else str(error), cause) from None
        exchange = cls(link, session, device)
        exchange._reconnect_wait_s = reconnect_deadline_s
        return exchange

    @property
    def address(self) -> str:
        """Of the coordinator, host:port."""
        return self._link.address

    @property
    def traffic(self) -> Traffic:
        """Bytes sent and received so far."""
        return Traffic(self._link.bytes_sent, self._link.bytes_received)

    def start(
        self,
        tensors: Sequence[TensorSpec],
        options: Mapping[str, str],
        replica: Replica,
        training_samples: int = 0,
    ) -> None:
        """Take the place: see `Exchange.start`."""
        self._specs = tuple(tensors)
        self._index = {(spec.kind, spec.name): index for index, spec in enumerate(self._specs)}
        self._replica = replica
        request = pb.JoinRequest(
            protocol_version=PROTOCOL_VERSION,
            session=self.session,
            device=self.device,
            tensors=[spec_to_proto(spec) for spec in self._specs],
            training_samples=training_samples,
            options=dict(options),
            weights_digest=replica.digest(),
            software=f"edgenewton {version('edgenewton')}",
            codecs=CODEC_NUMBERS.values(),
            next_step=replica.next_step,
        )
        try:
            reply = self._link.join(request)
            self._settings = reply.settings
            choice = CodecChoice.from_proto(reply.settings)
        except grpc.RpcError as error:
            raise self._explain(error) from None
        except ValueError as error:
            raise ExchangeError(f"device {self.device!r}: {error}", Cause.REFUSED) from None
        self._is_joined = True
        self.step = reply.first_step
        self._layout = Layout(self._specs, choice.policy(), reply.settings.frame_bytes)
        self._writer = SliceWriter(self._layout)
        self._assembly = Assembly(self._layout, self.step)
        self._link.start(self._assembly)
        if reply.snapshot == pb.SNAPSHOT_ACTION_DOWNLOAD:
            self._wait_until_healed()

    def begin(self, samples: int) -> None:
        """Begin the next step: see `Exchange.begin`."""
        self._require_start()
        failpoint("after-apply", self.step - 1)
        self._hand_state_in()
        self._packer = FramePacker(self.step, samples, self._layout.frame_bytes)
        self._contributed = set()
        self._link.begin_step(self.step)

    def contribute(self, key: TensorKey, value: Tensor) -> None:
        """Send one tensor: see `Exchange.contribute`."""
        if self._packer is None:
            raise ExchangeError(f"device {self.device!r}: begin a step before contributing to it", Cause.INVALID)
        index = self._index[key]
        self._raise_if_failed()
        flat = _to_numpy(value)
        self._contributed.add(index)
        if self._assembly.received_until > self.step:
            return  # the step went on without this device; what it computed comes too late
        for piece in self._layout.slices(index):
            values = flat[piece.key.offset : piece.key.offset + piece.length]
            self._check_finite(piece.spec, values)
            data = self._writer.encode(piece, values, self.step)
            for frame in self._packer.add(piece, data):
                self._link.send(frame)

    def collect(self, loss: float, evaluation: Evaluation | None = None) -> StepResult:
        """End the contribution and wait for the commit: see `Exchange.collect`."""
        if self._packer is None:
            raise ExchangeError(f"device {self.device!r}: begin a step before collecting it", Cause.INVALID)
        contribution = pb.Contribution(
            loss=loss, evaluation=evaluation_to_proto(evaluation), weights_digest=self._digest_if_due()
        )
        self._link.send(self._packer.take(pb.Frame(contribution=contribution)), is_last=True)
        self._packer = None
        step = self._wait_for_step()
        if step is None:
            return StepResult(self.step - 1, {}, samples=0, devices=0, loss=loss, is_healed=True)
        self._check_complete(step)
        result = self._result(step)
        # Whoever fell behind applies at once what it missed, but for the last step: the caller applies that.
        while (later := self._next_step_if_there()) is not None:
            self._replica.apply(result)
            result = self._result(later)
        failpoint("before-apply", result.step)
        return result

    def resume_at(self, step: int) -> None:
        """Nothing: the coordinator has set the step."""

    def close(self, failure: str = "") -> None:
        """Leave the session and close the connection; never raises for a coordinator that is gone."""
        if self._is_joined:
            self._is_joined = False
            try:
                if self._link.leave(self.session, self.device, failure):
                    self._link.upload_now(self.step, self._replica.dump())
                    self._link.leave(self.session, self.device, failure)
            except (grpc.RpcError, TimeoutError) as error:
                log.debug("device %r could not say goodbye: %s", self.device, error)
        self._link.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.close(failure="" if error is None else f"{type(error).__name__}: {error}")

    # ------------------------------------------------------------------ waiting

    def _wait_for_step(self) -> AssembledStep | None:
        """Return the step that is on once it has committed; None if this device healed instead."""
        link, settings = self._link, self._settings
        # The first step also waits for the other devices to join.
        wait_s = (
            settings.step_deadline_s
            + settings.join_deadline_s
            + settings.rejoin_deadline_s
            + self._reconnect_wait_s
            + _MARGIN_S
        )
        deadline = time.monotonic() + wait_s
        while True:
            with link.changed:
                if link.failure is not None:
                    raise self._explain(link.failure)
                is_healed = link.snapshot is not None
                step = None if is_healed or link.is_healing else self._assembly.take_step(self.step)
                is_news = step is not None or is_healed or link.is_state_wanted
                if not is_news and not link.changed.wait(deadline - time.monotonic()):
                    break
            if is_healed:
                self._load_snapshot()
                return None
            if step is not None:
                link.made_room()
                return step
            self._hand_state_in()
        raise ExchangeError(
            f"device {self.device!r}, step {self.step}: the coordinator at {self.address} neither committed nor "
            f"ended the step within {wait_s:g} s",
            Cause.TIMEOUT,
        )

    def _wait_until_healed(self) -> None:
        """Wait for the snapshot that was asked for, and load it."""
        link, settings = self._link, self._settings
        wait_s = settings.join_deadline_s + settings.rejoin_deadline_s + self._reconnect_wait_s + _MARGIN_S
        with link.changed:
            is_over = link.changed.wait_for(lambda: link.failure is not None or not link.is_healing, wait_s)
        self._raise_if_failed()
        if not is_over:
            raise ExchangeError(
                f"device {self.device!r}: the state of session {self.session!r} did not arrive within {wait_s:g} s",
                Cause.TIMEOUT,
            )
        if link.snapshot is not None:
            self._load_snapshot()

    def _load_snapshot(self) -> None:
        """Take over the state of another device, and apply the steps that came since."""
        with self._link.changed:
            if self._link.snapshot is None:
                return
            step, data = self._link.snapshot
            self._link.snapshot = None
        self._replica.load(data)
        self._writer = SliceWriter(self._layout)  # the errors that the old one remembers belong to another past
        self._packer = None
        self.step = step
        log.info("device %r goes on at step %d with the state of another device", self.device, step)
        while (later := self._next_step_if_there()) is not None:
            self._replica.apply(self._result(later))

    def _next_step_if_there(self) -> AssembledStep | None:
        with self._link.changed:
            step = self._assembly.take_step(self.step)
        if step is not None:
            self._link.made_room()
        return step

    # ------------------------------------------------------------------ inner workings

    def _result(self, step: AssembledStep) -> StepResult:
        """Return a committed step as tensors, and count it as taken."""
        tensors = {
            (self._specs[index].kind, self._specs[index].name): _to_tensor(values, self._specs[index])
            for index, values in step.tensors.items()
        }
        self.step = step.step + 1
        commit = step.commit or pb.Commit()
        return StepResult(
            step.step, tensors, commit.samples, commit.devices, commit.loss, left_out=tuple(commit.left_out)
        )

    def _check_complete(self, step: AssembledStep) -> None:
        missing = self._contributed - step.tensors.keys()
        if missing:
            raise ExchangeError(
                f"device {self.device!r}, step {self.step}: the step was committed without the "
                f"{self._specs[min(missing)]}",
                Cause.INVALID,
            )

    def _hand_state_in(self) -> None:
        """Give this device's state away if somebody needs it. Between two steps it is what all share."""
        if self._link.is_state_wanted:
            self._link.upload(self.step, self._replica.dump())

    def _digest_if_due(self) -> bytes:
        every = self._settings.digest_every
        return self._replica.digest() if every and self.step % every == 0 and self._replica.is_shared else b""

    def _check_finite(self, spec: TensorSpec, flat: Float32Array) -> None:
        try:
            check_values(spec, flat)
        except ValueError:
            raise NonFiniteGradientError(self.device, str(spec), self.step) from None

    def _require_start(self) -> None:
        if not self._is_joined:
            raise ExchangeError(f"device {self.device!r} has not started its exchange", Cause.INVALID)

    def _raise_if_failed(self) -> None:
        if self._link.failure is not None:
            raise self._explain(self._link.failure)

    def _explain(self, error: Exception) -> ExchangeError:
        if not isinstance(error, grpc.RpcError):
            return ExchangeError(f"device {self.device!r}, session {self.session!r}: {error}", Cause.ABORTED)
        code, details = error.code(), str(error.details())
        if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
            advice = diagnose(self.address, self._link.tls)
            details = f"device {self.device!r} lost the coordinator at {self.address} ({details})" + (
                f"; {advice}" if advice else ""
            )
        return ExchangeError(details, _CAUSES.get(code, Cause.REFUSED))


def _to_numpy(value: Tensor) -> Float32Array:
    return value.detach().to(device="cpu", dtype=torch.float32).contiguous().view(-1).numpy()


def _to_tensor(values: Float32Array, spec: TensorSpec) -> Tensor:
    # Whole small tensors are read-only views of the frame that they came in; means are the caller's own.
    own = values if values.flags.writeable else values.copy()
    return torch.from_numpy(own).view(spec.shape).to(getattr(torch, spec.dtype))
