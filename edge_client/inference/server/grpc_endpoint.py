"""Where a service is reached over gRPC: its address, limits, health and reflection."""

import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from edge_client.inference.server.grpc_limits import SERVER_OPTIONS
from edge_client.inference.server.grpc_models import ModelsServicer
from edge_client.inference.server.grpc_server import SERVICE_NAME, InferenceServicer, add_to_server
from edge_client.inference.server.grpc_stream import StreamServicer
from edge_client.inference.server.method_table import MethodTable
from edge_client.inference.server.model_control import ModelControl
from edge_client.inference.server.service import InferenceService


class GrpcEndpoint:
    """Serves a service over gRPC on one address. Use it on a running event loop.

    Args:
        service: what is served.
        control: loads and unloads models.
        host: address to listen on.
        port: port to listen on; 0 takes a free one, which `port` tells after `start`.

    """

    def __init__(self, service: InferenceService, control: ModelControl, host: str, port: int) -> None:
        self.port = port
        self._service = service
        self._control = control
        self._host = host
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined]  # missing in the stubs
        self._server: grpc.aio.Server | None = None

    async def start(self) -> None:
        """Listen.

        Raises:
            OSError: the address cannot be listened on.

        """
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
        address = f"[{self._host}]:{self.port}" if ":" in self._host else f"{self._host}:{self.port}"
        try:
            self.port = server.add_insecure_port(address)
        except RuntimeError as error:
            raise OSError(f"cannot listen on {address} for gRPC: {error}") from None
        await server.start()
        self._server = server

    async def set_ready(self, is_ready: bool) -> None:
        """Tell health checks whether requests are answered."""
        state = health_pb2.HealthCheckResponse
        for name in ("", SERVICE_NAME):
            await self._health.set(name, state.SERVING if is_ready else state.NOT_SERVING)

    async def stop(self, timeout_s: float) -> None:
        """Stop listening; calls that are under way have `timeout_s` seconds."""
        if self._server is not None:
            await self._server.stop(grace=timeout_s)
