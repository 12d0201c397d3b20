"""Both servers of a service on one event loop: their addresses, health, and orderly stop."""

from dataclasses import dataclass

import grpc.aio
from edgenewton.common.http_protocol import HttpLimits
from edgenewton.common.http_server import HttpServer
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from edge_client.inference.server.grpc_models import ModelsServicer
from edge_client.inference.server.grpc_server import SERVICE_NAME, InferenceServicer, add_to_server
from edge_client.inference.server.grpc_stream import StreamServicer
from edge_client.inference.server.method_table import MethodTable
from edge_client.inference.server.model_control import LoadingRules, ModelControl
from edge_client.inference.server.rest_server import make_app
from edge_client.inference.server.service import InferenceService

SERVER_OPTIONS = [
    ("grpc.http2.bdp_probe", 0),  # else what nobody has asked for comes in as fast as the link allows
    ("grpc.max_concurrent_streams", 128),  # of one connection; a client lets more wait
    ("grpc.max_metadata_size", 16 << 10),  # a request's headers, in bytes; beyond it they may be refused,
    ("grpc.absolute_max_metadata_size", 32 << 10),  # beyond this one they are
    ("grpc.server_handshake_timeout_ms", 10_000),
    # Connections without calls end, and after an hour any: the client opens another, without losing a call.
    ("grpc.max_connection_idle_ms", 300_000),
    ("grpc.max_connection_age_ms", 3_600_000),
    ("grpc.max_connection_age_grace_ms", 60_000),
    # A client that has vanished is found out; one that asks for signs of life too often is hung up on.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.http2.max_ping_strikes", 2),
]
"""Limits of the gRPC server (grpc.github.io/grpc/core/group__grpc__arg__keys.html)."""


@dataclass(frozen=True)
class Addresses:
    """Where the servers listen; a port of 0 takes a free one, None starts no such server."""

    host: str = "127.0.0.1"
    grpc_port: int | None = 8001
    rest_port: int | None = 8000


class InferenceServers:
    """Serves a service over gRPC and REST. Use it on a running event loop.

    Args:
        service: answers.
        addresses: where the servers listen.
        loading: which models clients may load and unload; None for none.

    """

    def __init__(self, service: InferenceService, addresses: Addresses, loading: LoadingRules | None = None) -> None:
        self._service = service
        self._control = ModelControl(service, loading)
        self._addresses = addresses
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined]  # missing in the stubs
        self._grpc: grpc.aio.Server | None = None
        self._rest: HttpServer | None = None
        self.grpc_port: int | None = None
        self.rest_port: int | None = None

    async def start(self) -> None:
        """Listen.

        Raises:
            OSError: an address cannot be listened on.

        """
        if self._addresses.grpc_port is not None:
            await self._start_grpc(self._addresses.grpc_port)
        if self._addresses.rest_port is not None:
            await self._start_rest(self._addresses.rest_port)

    async def set_ready(self, is_ready: bool) -> None:
        """Tell gRPC health checks whether requests are answered."""
        state = health_pb2.HealthCheckResponse
        for name in ("", SERVICE_NAME):
            await self._health.set(name, state.SERVING if is_ready else state.NOT_SERVING)

    async def stop(self, timeout_s: float) -> None:
        """Answer what has come, refuse what comes, and stop listening."""
        await self.set_ready(False)
        await self._service.stop(timeout_s)
        if self._grpc is not None:
            await self._grpc.stop(grace=timeout_s)
        if self._rest is not None:
            await self._rest.stop()

    async def _start_grpc(self, port: int) -> None:
        limits = self._service.limits
        server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", limits.max_request_bytes),
                ("grpc.max_send_message_length", -1),
                # A port in use is an error, not a second server behind the same address.
                ("grpc.so_reuseport", 0),
                ("grpc.max_allowed_incoming_connections", limits.max_connections),
                *SERVER_OPTIONS,
            ]
        )
        MethodTable(server, self._service.reception)
        more = {**ModelsServicer(self._service, self._control).handlers(), **StreamServicer(self._service).handlers()}
        servicer = InferenceServicer(self._service)  # type: ignore[abstract]  # the other calls are in `more`
        add_to_server(servicer, server, more)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        reflection.enable_server_reflection((SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
        await self.set_ready(self._service.is_ready)
        host = self._addresses.host
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            self.grpc_port = server.add_insecure_port(address)
        except RuntimeError as error:
            raise OSError(f"cannot listen on {address} for gRPC: {error}") from None
        await server.start()
        self._grpc = server

    async def _start_rest(self, port: int) -> None:
        limits = self._service.limits
        http_limits = HttpLimits(limits.max_connections, limits.max_connections_per_client)
        self._rest = HttpServer(
            make_app(self._service, self._control), self._addresses.host, port, purpose="REST", limits=http_limits
        )
        await self._rest.start()
        self.rest_port = self._rest.port
