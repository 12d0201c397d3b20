"""Both servers of a service on one event loop: their addresses, health, and orderly stop."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgenewton.common.extras import needing
from edgenewton.common.http_protocol import HttpLimits
from edgenewton.common.http_server import HttpServer

from edge_client.inference.server.model_control import LoadingRules, ModelControl
from edge_client.inference.server.rest_server import make_app
from edge_client.inference.server.service import InferenceService

if TYPE_CHECKING:
    from edge_client.inference.server.grpc_endpoint import GrpcEndpoint


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
        self._grpc: GrpcEndpoint | None = None
        self._rest: HttpServer | None = None
        self.grpc_port: int | None = None
        self.rest_port: int | None = None

    async def start(self) -> None:
        """Listen.

        Raises:
            OSError: an address cannot be listened on.
            MissingExtraError: a server over gRPC is wanted, and gRPC is not installed.

        """
        if self._addresses.grpc_port is not None:
            with needing("serving over gRPC", "grpc"):
                from edge_client.inference.server.grpc_endpoint import GrpcEndpoint
            self._grpc = GrpcEndpoint(self._service, self._control, self._addresses.host, self._addresses.grpc_port)
            await self._grpc.start()
            self.grpc_port = self._grpc.port
        if self._addresses.rest_port is not None:
            await self._start_rest(self._addresses.rest_port)

    async def set_ready(self, is_ready: bool) -> None:
        """Tell gRPC health checks whether requests are answered."""
        if self._grpc is not None:
            await self._grpc.set_ready(is_ready)

    async def stop(self, timeout_s: float) -> None:
        """Answer what has come, refuse what comes, and stop listening."""
        await self.set_ready(False)
        await self._service.stop(timeout_s)
        if self._grpc is not None:
            await self._grpc.stop(timeout_s)
        if self._rest is not None:
            await self._rest.stop()

    async def _start_rest(self, port: int) -> None:
        limits = self._service.limits
        http_limits = HttpLimits(limits.max_connections, limits.max_connections_per_client)
        self._rest = HttpServer(
            make_app(self._service, self._control), self._addresses.host, port, purpose="REST", limits=http_limits
        )
        await self._rest.start()
        self.rest_port = self._rest.port
