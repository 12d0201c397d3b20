"""The channel to a coordinator: in plaintext, or with the device's certificate, which may be renewed at any time."""

import asyncio
import logging
import time
from typing import Any

import grpc
import grpc.aio
from edgenewton.common.tls import Stamp, TlsError, TlsFiles
from edgenewton.common.tls_diagnosis import diagnose
from edgenewton.v1 import MAX_MESSAGE_BYTES, TRANSPORT_OPTIONS, exchange_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

log = logging.getLogger(__name__)

_OPTIONS = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    *TRANSPORT_OPTIONS,
]
_KNOCK_EVERY_S = 0.2
CALL_TIMEOUT_S = 10.0
"""Seconds that a call to a coordinator that is there may take."""


class NoEntryError(ConnectionError):
    """Nobody answers, or this side and the other do not trust each other; the text says what to do."""

    def __init__(self, message: str, *, is_refused: bool) -> None:
        super().__init__(message)
        self.is_refused = is_refused
        """Whether somebody was there."""


class Connection:
    """Keeps a channel to a coordinator. Use it on one event loop.

    Args:
        address: of the coordinator, host:port.
        tls: this device's files; None for plaintext.

    """

    def __init__(self, address: str, tls: TlsFiles | None) -> None:
        self.address = address
        self.tls = tls
        self.channel: Any = None
        self.stub: Any = None
        self._stamp: Stamp = ()

    @property
    def has_new_files(self) -> bool:
        """Whether a file was replaced since the channel was made."""
        return self.tls is not None and self.tls.stamp != self._stamp

    def is_outdated(self, error: grpc.RpcError) -> bool:
        """Whether the coordinator refused a certificate that was replaced meanwhile."""
        return error.code() is grpc.StatusCode.UNAUTHENTICATED and self.has_new_files

    async def open(self, timeout_s: float) -> None:
        """Make the channel, and wait until the other side has answered on it.

        A server refuses a certificate only after the client believes to be connected, so it is an answer that counts.

        Raises:
            NoEntryError: there was no answer in time, or a refusal.

        """
        deadline = time.monotonic() + timeout_s
        try:
            self._make_channel()
            while not await self._knock(deadline):
                if time.monotonic() + _KNOCK_EVERY_S > deadline:
                    raise NoEntryError(
                        f"no coordinator answers at {self.address} within {timeout_s:g} s. Is the address right, and "
                        "`edge-coordinator serve` running there?",
                        is_refused=False,
                    )
                await asyncio.sleep(_KNOCK_EVERY_S)
        except TlsError as error:
            raise NoEntryError(str(error), is_refused=True) from None
        except BaseException:
            await self.close()
            raise

    async def renew(self) -> None:
        """Make the channel anew if files were replaced; while the new ones cannot be used the old channel stays."""
        if not self.has_new_files:
            return
        old = self.channel
        try:
            self._make_channel()
        except TlsError as error:
            log.warning("the new certificate is not used yet: %s", error)
            return
        log.info("connecting to %s with a new certificate", self.address)
        await old.close()

    async def close(self) -> None:
        """Close the channel."""
        if self.channel is not None:
            await self.channel.close()

    def _make_channel(self) -> None:
        if self.tls is None:
            self.channel = grpc.aio.insecure_channel(self.address, options=_OPTIONS)
        else:
            current = self.tls.stamp
            credentials = self.tls.read().channel_credentials()
            self.channel = grpc.aio.secure_channel(self.address, credentials, options=_OPTIONS)
            self._stamp = current
        self.stub = exchange_pb2_grpc.GradientExchangeStub(self.channel)

    async def _knock(self, deadline: float) -> bool:
        """Return whether the other side lets this one in; False while nobody is there.

        Raises:
            NoEntryError: it does not, and will not.

        """
        health = health_pb2_grpc.HealthStub(self.channel)
        try:
            await health.Check(health_pb2.HealthCheckRequest(), timeout=max(0.1, deadline - time.monotonic()))
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:  # somebody is there, and says so
                return True
            if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                reason = f"the coordinator at {self.address} refuses this device: {error.details()}"
                raise NoEntryError(reason, is_refused=True) from None
            advice = await asyncio.to_thread(diagnose, self.address, self.tls)
            if advice:
                reason = f"something answers at {self.address}, but {advice}"
                raise NoEntryError(reason, is_refused=True) from None
            return False
        return True
