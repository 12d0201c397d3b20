"""GradientExchange: the way to the devices of a coordinator's session."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Self

import grpc
from edgenewton.common.backoff import backoff
from edgenewton.common.loop_thread import LoopThread
from edgenewton.common.memory import keep_freed_memory
from edgenewton.common.tls import TlsError, TlsFiles
from edgenewton.v1 import PROTOCOL_VERSION
from edgenewton.v1 import exchange_pb2 as pb
from edgenewton.v1.codecs import CODEC_NUMBERS, CodecChoice
from edgenewton.v1.fingerprint import spec_to_proto
from edgenewton.v1.framing import Layout
from edgenewton.v1.privacy_mode import PrivacyMode
from edgenewton.v1.privacy_options import AgreedBudget
from edgenewton.v1.sketch_message import sketch_to_proto
from edgenewton.v1.tensor_spec import TensorSpec

from edge_client.exchange.errors import Cause, ExchangeError
from edge_client.exchange.interface import Replica, Stages, Traffic, no_stages
from edge_client.exchange.remote.assembly import Assembly
from edge_client.exchange.remote.connection import CALL_TIMEOUT_S, Connection, NoEntryError
from edge_client.exchange.remote.device_stages import DeviceStages
from edge_client.exchange.remote.link import LEAVE_TIMEOUT_S, MAX_REASON, Link
from edge_client.exchange.remote.masked_membership import MaskedMembership
from edge_client.exchange.remote.masking import Channels, Masking
from edge_client.exchange.remote.membership import GrpcMembership, Place
from edge_client.exchange.remote.round_trip import RoundTrip
from edge_client.exchange.remote.status import RETRIED_FIRST_JOINS, describe, explain
from edge_client.exchange.requirements import Requirements

log = logging.getLogger(__name__)

_CLOSE_TIMEOUT_S = 5.0


class GradientExchange:
    """A connection to a coordinator, from which a device joins one of its sessions. `connect` makes it."""

    is_alone = False

    def __init__(
        self,
        loop: LoopThread,
        connection: Connection,
        place: Place,
        reconnect_deadline_s: float,
        run_steps: int | None = None,
        require: Requirements | None = None,
    ) -> None:
        self._loop = loop
        self._connection = connection
        self._place = place
        self._reconnect_deadline_s = reconnect_deadline_s
        self._run_steps = run_steps
        self._require = Requirements() if require is None else require
        self._membership: GrpcMembership | None = None
        self._is_closed = False

    @classmethod
    def connect(
        cls,
        address: str,
        *,
        session: str,
        device: str,
        run_steps: int | None = None,
        connect_timeout_s: float = 5.0,
        reconnect_deadline_s: float = 120.0,
        tls: TlsFiles | None = None,
        require: Sequence[str] = (),
    ) -> Self:
        """Connect to the coordinator at `address` (host:port), to take the place of `device` in `session`.

        The place itself is taken by `join`, because it depends on the model; an optimizer does it. When the connection
        or the coordinator is lost later on, the exchange tries for `reconnect_deadline_s` to get back.

        With `run_steps`, the steps of the whole run from step 0 on, those who watch see how much of it is left.

        With `tls` the device shows its certificate, whose name must be `device`. The files are read again for each new
        connection, so that a renewed certificate takes the place of the old one in a running session.

        With `require` the device insists on what it names, such as "secure-aggregation>=5" for sums of at least five
        devices, or "epsilon<=4" for a privacy budget, whose delta is to be at most 1e-5 unless "delta<=1e-4" says
        otherwise: `join` raises `ExchangeError` before anything that it trained on leaves.

        Raises:
            RequirementError: one of `require` cannot be understood.
            ExchangeError: nothing answers at `address` within `connect_timeout_s`, the files of `tls` cannot be used,
                or the two sides do not trust each other.

        """
        requirements = Requirements.parse(require)
        keep_freed_memory()
        loop, connection = LoopThread("exchange"), Connection(address, tls)
        try:
            loop.call(connection.open(connect_timeout_s), connect_timeout_s + CALL_TIMEOUT_S)
        except NoEntryError as error:
            loop.call(connection.close(), _CLOSE_TIMEOUT_S)
            loop.stop()
            cause = Cause.REFUSED if error.is_refused else Cause.UNREACHABLE
            raise ExchangeError(f"device {device!r}: {error}" if error.is_refused else str(error), cause) from None
        return cls(loop, connection, Place(address, session, device), reconnect_deadline_s, run_steps, requirements)

    @property
    def address(self) -> str:
        """Of the coordinator, host:port."""
        return self._place.address

    @property
    def session(self) -> str:
        """Name of the session."""
        return self._place.session

    @property
    def device(self) -> str:
        """Id of this device."""
        return self._place.device

    @property
    def traffic(self) -> Traffic:
        """Bytes sent and received so far."""
        return self._membership.traffic if self._membership is not None else Traffic()

    def join(
        self,
        tensors: Sequence[TensorSpec],
        options: Mapping[str, str],
        replica: Replica,
        training_samples: int = 0,
        stages: Stages = no_stages,
    ) -> GrpcMembership:
        """Take the place: see `Exchange.join`."""
        place = self._place
        if self._membership is not None:
            raise ExchangeError(
                f"device {place.device!r} has its place in {place.session!r} already; for another optimizer "
                "close this exchange, and connect another one",
                Cause.INVALID,
            )
        self._require.check_budget(options, place.device)
        frozen = replica.frozen_sketch()
        channels = self._open_channels()
        request = pb.JoinRequest(
            protocol_version=PROTOCOL_VERSION,
            session=place.session,
            device=place.device,
            tensors=[spec_to_proto(spec) for spec in tensors],
            training_samples=0 if self._require else training_samples,
            options=dict(options),
            weights_digest=replica.digest(),
            sketch=sketch_to_proto(replica.sketch(replica.next_step or 0)),
            frozen_sketch=None if frozen is None else sketch_to_proto(frozen),
            software=f"edgenewton {version('edgenewton')}",
            codecs=CODEC_NUMBERS.values(),
            next_step=replica.next_step,
            run_steps=self._run_steps,
            channel_key=channels.key,
        )
        round_trip = RoundTrip()
        try:
            reply = self._loop.call(
                self._ask_for_place(request, round_trip), self._reconnect_deadline_s + 2 * CALL_TIMEOUT_S
            )
        except grpc.RpcError as error:
            raise explain(error, place.device, place.address, self._connection.tls) from None
        self._insist(reply)
        try:
            choice = CodecChoice.from_proto(reply.settings)
        except ValueError as error:
            raise ExchangeError(f"device {place.device!r}: {error}", Cause.REFUSED) from None
        told = reply.settings.secure_aggregation
        mode = PrivacyMode(told.least, AgreedBudget.of(options), replica.epsilon)
        log.info("device %r in session %r, %s", place.device, place.session, mode)
        layout = Layout(tuple(tensors), choice.policy(), reply.settings.frame_bytes)
        patience_s = self._reconnect_deadline_s
        assembly = Assembly(layout, reply.first_step)
        masking = None
        if reply.settings.HasField("secure_aggregation"):
            sent_layout = Layout(tuple(tensors), choice.masked_policy(), reply.settings.frame_bytes)
            masking = Masking(channels, sent_layout, reply.settings.secure_aggregation)
            if self._connection.tls is None:
                log.warning("nobody vouches for the devices' keys without TLS: the coordinator could pass on its own")
        link = Link(self._loop, self._connection, request, reply, assembly, patience_s, round_trip, masking)
        link.start()
        ways = DeviceStages(choice, stages)
        of_place = (place, link, layout, ways, reply, replica, patience_s)
        self._membership = GrpcMembership(*of_place) if masking is None else MaskedMembership(masking, *of_place)
        if reply.snapshot == pb.SNAPSHOT_ACTION_DOWNLOAD:
            self._membership.load_state()
        return self._membership

    def close(self, failure: str = "", *, ended: str = "") -> None:
        """Leave the session and close the connection; never raises for a coordinator that is gone."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._membership is not None:
            self._membership.leave(failure, ended)
        try:
            self._loop.call(self._close(), _CLOSE_TIMEOUT_S)
        except (grpc.RpcError, TimeoutError) as error:
            log.debug("closing the connection to %s: %s", self.address, error)
        self._loop.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.close(failure="" if error is None else f"{type(error).__name__}: {error}")

    def _insist(self, reply: pb.JoinReply) -> None:
        """Give the place back at once if the session does not give what this device insists on."""
        place = self._place
        try:
            self._require.check_session(reply.settings, place.device, place.session)
        except ExchangeError as error:
            leaving = pb.LeaveRequest(
                session=place.session, device=place.device, token=reply.token, reason=str(error)[:MAX_REASON]
            )
            with contextlib.suppress(grpc.RpcError, TimeoutError):
                self._loop.call(self._leave(leaving), CALL_TIMEOUT_S)
            raise

    async def _leave(self, request: pb.LeaveRequest) -> None:
        await self._connection.stub.Leave(request, timeout=LEAVE_TIMEOUT_S)

    def _open_channels(self) -> Channels:
        """Return a key for secure aggregation, with the signature of this device's certificate if it has one."""
        place, tls = self._place, self._connection.tls
        channels = Channels(place.session, place.device)
        try:
            if tls is not None:
                channels.vouch_with(tls.read())
        except TlsError as error:
            raise ExchangeError(f"device {place.device!r}: {error}", Cause.REFUSED) from None
        return channels

    async def _ask_for_place(self, request: pb.JoinRequest, round_trip: RoundTrip) -> pb.JoinReply:
        """Join; a coordinator that goes down meanwhile has the time of a reconnection to come back."""
        deadline = time.monotonic() + self._reconnect_deadline_s
        for pause_s in backoff():
            try:
                round_trip.begin()
                round_trip.leave()
                reply: pb.JoinReply = await self._connection.stub.Join(request, timeout=CALL_TIMEOUT_S)
                round_trip.arrive()
                return reply
            except grpc.RpcError as error:
                if error.code() not in RETRIED_FIRST_JOINS or time.monotonic() > deadline:
                    raise
                log.warning("joining at %s failed, trying again: %s", self.address, describe(error))
            await asyncio.sleep(pause_s)
        raise AssertionError("the pauses do not end")

    async def _close(self) -> None:
        await self._loop.cancel_tasks()
        if self._membership is not None:
            self._membership.cancel()
        await self._connection.close()
