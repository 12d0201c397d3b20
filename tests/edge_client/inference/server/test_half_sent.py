"""Requests of gRPC of which all comes but the end: few at the same time take memory, and none waits for ever."""

import asyncio

import grpc
import grpc.aio
import pytest
from edgenewton.common.reception import Reception
from half_sent import half_send

from edge_client.inference.server import method_table
from edge_client.inference.server.grpc_limits import SERVER_OPTIONS
from edge_client.inference.server.method_table import MethodTable

MB = 1_000_000


async def _echo(request, _context):
    return request


async def _serve(reception):
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", 2 * MB), *SERVER_OPTIONS])
    MethodTable(server, reception).add("s", {"Echo": grpc.unary_unary_rpc_method_handler(_echo)})
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    return server, f"127.0.0.1:{port}"


def test_one_client_has_as_many_half_sent_requests_in_memory_as_there_are_places():
    async def run():
        server, address = await _serve(Reception(4, 2))
        sent = await asyncio.to_thread(half_send, address, "/s/Echo", 20, MB)
        async with grpc.aio.insecure_channel(address) as channel:  # those that are gone have given their places back
            answer = await channel.unary_unary("/s/Echo")(b"x", timeout=20)
        await server.stop(0)
        return sent, answer

    sent, answer = asyncio.run(run())
    assert 2 * (MB - 1) <= sent < 4.5 * MB  # two of them, and the first 64 KiB of each
    assert answer == b"x"


def test_a_request_that_does_not_come_is_given_up(monkeypatch):
    monkeypatch.setattr(method_table, "RECEIVE_S", 0.2)

    async def run():
        server, address = await _serve(Reception(4, 2))
        async with grpc.aio.insecure_channel(address) as channel:
            call = channel.stream_unary("/s/Echo")()
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await asyncio.wait_for(call, 20)
        await server.stop(0)
        return raised.value

    error = asyncio.run(run())
    assert (error.code(), error.details()) == (
        grpc.StatusCode.DEADLINE_EXCEEDED,
        "the request did not come within 0.2 s",
    )
