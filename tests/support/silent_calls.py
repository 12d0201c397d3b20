"""Run as a program: calls of recognition over gRPC that send no message, and what they are told, a line each.

It is a process of its own, for the server's messages would meet tritonclient's in that of the tests.
"""

import asyncio
from collections.abc import AsyncIterator

import grpc.aio

from edge_client.inference.server import grpc_server
from edge_client.inference.server.servers import Addresses, InferenceServers
from edge_client.inference.server.service import InferenceService

METHOD = "/inference.GRPCInferenceService/ModelInfer"


async def main() -> None:
    """Call."""
    grpc_server._RECEIVE_S = 0.5
    service = InferenceService("digits")
    servers = InferenceServers(service, Addresses("127.0.0.1", 0, None))
    await servers.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{servers.grpc_port}") as channel:
        call = channel.stream_unary(METHOD)

        async def nothing() -> AsyncIterator[bytes]:
            return
            yield b""

        for calls in ((call(), call()), (call(nothing()),)):
            for called in calls:
                try:
                    await called
                except grpc.aio.AioRpcError as error:
                    print(error.code().name, error.details())
        gone = call()
        while not service.metrics.to_text().count(b'outcome="bad_request"'):
            await asyncio.sleep(0.01)
        gone.cancel()
        try:
            await channel.unary_unary("/inference.GRPCInferenceService/Unheard")(b"")
        except grpc.aio.AioRpcError as error:
            print(error.code().name)
        print("live", await channel.unary_unary("/inference.GRPCInferenceService/ServerLive")(b"") == b"\x08\x01")
    await servers.stop(5)
    print("memory", service.memory.taken)


if __name__ == "__main__":
    asyncio.run(main())
