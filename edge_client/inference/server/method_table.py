"""Finds the handlers of a gRPC server's methods at the cost of one look-up for each call."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
from edgenewton.common.clients import client_of_peer
from edgenewton.common.reception import Reception

RECEIVE_S = 20.0
"""Seconds that a request's message may take to come."""

Handlers = dict[str, "grpc.RpcMethodHandler[Any, Any]"]


class MethodTable(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # generic in the stubs alone
    """The methods of a server that runs on an event loop.

    Generated code registers each method with the server, which then waits for calls of each of them by itself: with
    every call it begins and ends as many waits as there are methods. This table takes their place: to the server, there
    is nothing but calls of any method.

    The one request of a call is read here, too, unless a handler reads it itself: gRPC would wait for each for ever,
    and for all at once.

    Args:
        server: is given no methods yet, and has not begun.
        reception: of the requests.

    """

    def __init__(self, server: grpc.aio.Server, reception: Reception) -> None:
        self._handlers: Handlers = {}
        self._reception = reception
        server.add_generic_rpc_handlers((self,))
        # The generated code calls it; grpc-stubs lack it.
        server.add_registered_method_handlers = self.add  # type: ignore[attr-defined]

    def add(self, service: str, handlers: Handlers) -> None:
        """Let a service's methods be answered; a handler takes the place of one that was added before."""
        self._handlers |= {f"/{service}/{method}": self._received(handler) for method, handler in handlers.items()}

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[Any, Any] | None":
        """Return the handler of a call; None if the method is unknown."""
        return self._handlers.get(handler_call_details.method)

    def _received(self, handler: "grpc.RpcMethodHandler[Any, Any]") -> "grpc.RpcMethodHandler[Any, Any]":
        """Return a handler whose one request is awaited for some time, and with a place for it."""
        if handler.request_streaming:
            return handler
        answer: Any = handler.unary_stream or handler.unary_unary

        async def call(messages: AsyncIterator[Any], context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            try:
                async with asyncio.timeout(RECEIVE_S), self._reception.place(client_of_peer(context.peer())):
                    request = await anext(messages)
            except StopAsyncIteration:
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the request has no message")
            except TimeoutError:
                text = f"the request did not come within {RECEIVE_S:g} s"
                await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, text)
            return await answer(request, context)

        make = grpc.stream_stream_rpc_method_handler if handler.unary_stream else grpc.stream_unary_rpc_method_handler
        return make(call, handler.request_deserializer, handler.response_serializer)
