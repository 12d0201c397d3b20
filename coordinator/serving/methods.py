"""The methods of a gRPC service, read from its description, whose messages are read within their limits.

The generated code decodes every message as it comes, whatever it costs. Here each method is given bytes: a request is
checked before it is parsed (`edgenewton.v1.limits`). Frames are parsed without copies (`edgenewton.v1.framing`), and
what goes to all devices is written once, so the method that carries them takes and gives bytes itself.

To gRPC all methods take a stream, also those with one request: so the call is known, and can be counted and ended,
while its request is still on its way. On the wire there is no difference.
"""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from typing import Any, NoReturn

import grpc
import grpc.aio
from edgenewton.v1.limits import LimitError, Limits
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message_factory import GetMessageClass

from coordinator.serving.intake import Intake
from coordinator.serving.translation import unreadable
from coordinator.session.refusal import RefusedError

_Context = grpc.aio.ServicerContext[Any, Any]
_Refuse = Callable[..., Awaitable[NoReturn]]
"""Ends a call: given its context, the refusal, and the session and the device that the caller named."""


def generic_handler(
    service: ServiceDescriptor, servicer: object, intake: Intake, refuse: _Refuse, as_bytes: Collection[str] = ()
) -> "grpc.GenericRpcHandler[Any, Any]":
    """Return what a server needs to offer a service.

    Args:
        service: its description.
        servicer: has a method for each of the service's.
        intake: reads the requests.
        refuse: ends a call with a refusal.
        as_bytes: methods whose messages are not decoded and encoded.

    Raises:
        ValueError: the service has no such method.

    """
    unknown = set(as_bytes) - set(service.methods_by_name)
    if unknown:
        raise ValueError(f"{service.full_name} has no method {', '.join(sorted(unknown))}")
    handlers = {
        name: grpc.stream_stream_rpc_method_handler(getattr(servicer, name))
        if name in as_bytes
        else _handler(method, getattr(servicer, name), intake, refuse)
        for name, method in service.methods_by_name.items()
    }
    return grpc.method_handlers_generic_handler(service.full_name, handlers)


def _handler(
    method: MethodDescriptor, behaviour: Any, intake: Intake, refuse: _Refuse
) -> "grpc.RpcMethodHandler[Any, Any]":
    limits = Limits(GetMessageClass(method.input_type))

    async def received(requests: AsyncIterator[bytes], context: _Context) -> Any:
        if method.client_streaming:
            return _each(requests, limits)
        data = b""
        try:
            data = await intake.request(requests, context)
            return await intake.read(limits, data)
        except LimitError as error:
            await refuse(context, *unreadable(method.input_type, data, error))
        except RefusedError as error:
            await refuse(context, error)

    async def answer(requests: AsyncIterator[bytes], context: _Context) -> bytes:
        response = await behaviour(await received(requests, context), context)
        data: bytes = response.SerializeToString()
        return data

    async def answers(requests: AsyncIterator[bytes], context: _Context) -> None:
        given = await received(requests, context)
        async with contextlib.aclosing(behaviour(given, context)) as responses:
            try:
                await intake.send(context, (response.SerializeToString() async for response in responses))
            except RefusedError as error:
                await refuse(context, error)

    if method.server_streaming:
        return grpc.stream_stream_rpc_method_handler(answers)
    return grpc.stream_unary_rpc_method_handler(answer)


async def _each(requests: AsyncIterator[bytes], limits: Limits[Any]) -> AsyncIterator[Any]:
    async for data in requests:
        yield limits.parse(data)  # parts of states: few fields, however large
