"""The methods of a gRPC service, read from its description, some of which take and give messages as bytes.

The generated code decodes every message. Frames are parsed here without copies (`edgenewton.v1.framing`), and what goes
to all devices is written once, so the method that carries them is registered without a codec.
"""

from collections.abc import Collection
from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message_factory import GetMessageClass

_MAKERS = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}
"""By whether requests and responses are streams."""


def generic_handler(
    service: ServiceDescriptor, servicer: object, as_bytes: Collection[str] = ()
) -> "grpc.GenericRpcHandler[Any, Any]":
    """Return what a server needs to offer a service.

    Args:
        service: its description.
        servicer: has a method for each of the service's.
        as_bytes: methods whose messages are not decoded and encoded.

    Raises:
        ValueError: the service has no such method.

    """
    unknown = set(as_bytes) - set(service.methods_by_name)
    if unknown:
        raise ValueError(f"{service.full_name} has no method {', '.join(sorted(unknown))}")
    handlers = {
        name: _handler(method, getattr(servicer, name), is_bytes=name in as_bytes)
        for name, method in service.methods_by_name.items()
    }
    return grpc.method_handlers_generic_handler(service.full_name, handlers)


def _handler(method: MethodDescriptor, behaviour: Any, *, is_bytes: bool) -> "grpc.RpcMethodHandler[Any, Any]":
    make = _MAKERS[method.client_streaming, method.server_streaming]
    if is_bytes:
        return make(behaviour)
    return make(
        behaviour,
        request_deserializer=GetMessageClass(method.input_type).FromString,
        response_serializer=GetMessageClass(method.output_type).SerializeToString,
    )
