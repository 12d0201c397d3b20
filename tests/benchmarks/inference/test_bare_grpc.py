"""The benchmarks' bare gRPC client against a real server of gRPC."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from benchmarks.inference.bare_grpc import BareGrpc

METHOD = "/test.Echo/Say"


@pytest.fixture
def server():
    heard = []

    def say(request: bytes, context: grpc.ServicerContext) -> bytes:
        heard.append(request)
        if request == b"refuse":
            context.abort(grpc.StatusCode.NOT_FOUND, "not here")
        return request * 2

    server = grpc.server(ThreadPoolExecutor(2))
    handlers = {"Say": grpc.unary_unary_rpc_method_handler(say)}
    server.add_registered_method_handlers("test.Echo", handlers)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}", heard
    server.stop(None)


def ask(address: str, request: bytes, times: int) -> None:
    async def run() -> None:
        host, port = address.split(":")
        loop = asyncio.get_running_loop()
        _, client = await loop.create_connection(lambda: BareGrpc(METHOD, address, request), host, int(port))
        try:
            for _ in range(times):
                await asyncio.wait_for(client.ask(), 20)
        finally:
            client.close()

    asyncio.run(run())


def test_every_request_reaches_the_server_and_is_answered(server):
    address, heard = server
    request = bytes(range(256)) * 4
    ask(address, request, 300)  # far more bytes than HTTP/2 lets a client send unasked
    assert heard == [request] * 300


def test_a_refusal_and_a_method_that_is_not_there_are_errors(server):
    address, _ = server
    with pytest.raises(ConnectionError, match="the server answered nothing"):
        ask(address, b"refuse", 1)
