"""Finds the handlers of a gRPC server's methods at the cost of one look-up for each call."""

from typing import Any

import grpc
import grpc.aio

Handlers = dict[str, "grpc.RpcMethodHandler[Any, Any]"]


class MethodTable(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # generic in the stubs alone
    """The methods of a server that runs on an event loop.

    Generated code registers each method with the server, which then waits for calls of each of them by itself: with
    every call it begins and ends as many waits as there are methods. This table takes their place: to the server, there
    is nothing but calls of any method.

    Args:
        server: is given no methods yet, and has not begun.

    """

    def __init__(self, server: grpc.aio.Server) -> None:
        self._handlers: Handlers = {}
        server.add_generic_rpc_handlers((self,))
        # The generated code calls it; grpc-stubs lack it.
        server.add_registered_method_handlers = self.add  # type: ignore[attr-defined]

    def add(self, service: str, handlers: Handlers) -> None:
        """Let a service's methods be answered; a handler takes the place of one that was added before."""
        self._handlers |= {f"/{service}/{method}": handler for method, handler in handlers.items()}

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[Any, Any] | None":
        """Return the handler of a call; None if the method is unknown."""
        return self._handlers.get(handler_call_details.method)
