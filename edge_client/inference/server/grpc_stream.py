"""ModelStreamInfer: one request after another on one gRPC call, answered in their order.

A request that cannot be answered gets its reason, and the stream goes on. Each counts its memory until its answer is
sent, and a client may have a few on their way at the same time: what it sends beyond them stays with it.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import grpc
import grpc.aio
from edgenewton.common.clients import client_of_peer
from edgenewton.inference import open_inference_pb2 as pb

from edge_client.inference import errors
from edge_client.inference.server.grpc_server import LONGEST_ERROR, Context, abort, parse, read_request, write_response
from edge_client.inference.server.memory import RequestMemory
from edge_client.inference.server.protocol import InferRequest
from edge_client.inference.server.service import InferenceService
from edge_client.inference.server.sizes import message_bytes
from edge_client.tasks import SampleError, TaskError

log = logging.getLogger(__name__)

STREAMS = 128
STREAMS_PER_CLIENT = 16
"""Streams that are open at the same time."""
_ON_THEIR_WAY = 8
"""Requests of one stream that are answered at the same time."""
_IDLE_S = 300.0
"""Seconds between two requests on a stream."""
_STALL_S = 30.0
"""A client that takes nothing of an answer for so many seconds loses its stream."""
_FINAL = "triton_final_response"
_WANTS_FINAL = "triton_enable_empty_final_response"
"""Parameter of a request for models with several answers: whether the last one is to say so. Here each is the last."""


class StreamServicer:
    """Answers streams of requests.

    Args:
        service: answers the requests.
        idle_s: seconds between two requests on a stream at most.
        stall_s: seconds that an answer may wait for its client.

    """

    def __init__(self, service: InferenceService, idle_s: float = _IDLE_S, stall_s: float = _STALL_S) -> None:
        self._service = service
        self._idle_s = idle_s
        self._stall_s = stall_s
        self._open: Counter[str] = Counter()

    def handlers(self) -> Mapping[str, "grpc.RpcMethodHandler[Any, Any]"]:
        """Return the call by its name."""
        return {"ModelStreamInfer": grpc.stream_stream_rpc_method_handler(self._stream)}

    async def _stream(self, messages: AsyncIterator[bytes], context: Context) -> None:
        peer = client_of_peer(context.peer())
        with self._place(peer) as is_free:
            # The place is kept until the client knows: one that takes nothing at all has no more than these.
            try:
                if not is_free:
                    raise errors.OverloadedError("too many streams are open; use one for many requests, or try later")
                await self._answer_all(messages, context, peer)
            except errors.RequestError as error:
                await abort(context, error)

    async def _answer_all(self, messages: AsyncIterator[bytes], context: Context, peer: str) -> None:
        places = asyncio.Semaphore(_ON_THEIR_WAY)
        last: asyncio.Task[None] | None = None
        try:
            async with asyncio.TaskGroup() as tasks:  # one that fails ends the others, and the wait for more requests
                async for content in self._received(messages):
                    await places.acquire()
                    last = tasks.create_task(self._answer_one(content, context, peer, last))
                    last.add_done_callback(lambda _: places.release())
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None

    async def _received(self, messages: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        while True:
            try:
                async with asyncio.timeout(self._idle_s):
                    content = await anext(messages)
            except StopAsyncIteration:
                return
            except TimeoutError:
                raise errors.DeadlineError(f"no request came for {self._idle_s:g} s; open another stream") from None
            yield content

    async def _answer_one(
        self, content: bytes, context: Context, peer: str, before: "asyncio.Task[None] | None"
    ) -> None:
        """Answer a request once those before it are."""
        with self._service.memory.request(peer) as memory:
            answer = await self._answer(content, memory)
            if before is not None:
                await asyncio.wait((before,))
            try:
                async with asyncio.timeout(self._stall_s):
                    await context.write(answer)
            except TimeoutError:
                log.warning("a stream of %s ends: it took nothing of an answer for %g s", peer, self._stall_s)
                raise errors.DeadlineError(f"an answer was not taken for {self._stall_s:g} s") from None

    async def _answer(self, content: bytes, memory: RequestMemory) -> bytes:
        """Return the answer to a request, or why there is none, as a message's bytes."""
        service = self._service
        name = ""
        try:
            with service.metrics.request("grpc-stream"):
                memory.take(len(content), "the request")

                def read() -> tuple[InferRequest, bool, bool]:
                    memory.take(message_bytes(content), "the request, whose tensors may come as raw_input_contents,")
                    message = parse(content)
                    wants_final = _WANTS_FINAL in message.parameters and message.parameters[_WANTS_FINAL].bool_param
                    if _WANTS_FINAL in message.parameters:
                        del message.parameters[_WANTS_FINAL]
                    return read_request(message), bool(message.raw_input_contents), wants_final

                request, is_raw, wants_final = await service.aside(len(content), read)
                name = request.id
                response = await service.infer(request, memory)

                def write() -> bytes:
                    message = pb.ModelStreamInferResponse(infer_response=write_response(response, is_raw=is_raw))
                    if wants_final:
                        message.infer_response.parameters[_FINAL].bool_param = True
                    return message.SerializeToString()

                return await service.aside(response.text_bytes, write)
        except (SampleError, TaskError, errors.RequestError) as error:
            text = str(error)
        except Exception as error:
            log.exception("a request on a stream failed")
            text = f"the server failed: {type(error).__name__}: {error}"
        refusal = pb.ModelStreamInferResponse(error_message=text[:LONGEST_ERROR])
        refusal.infer_response.id = name
        return refusal.SerializeToString()

    @contextmanager
    def _place(self, client: str) -> Iterator[bool]:
        """Count a stream while it is open; say whether there was a place for it."""
        is_free = self._open[client] < STREAMS_PER_CLIENT and self._open.total() < STREAMS
        self._open[client] += is_free
        try:
            yield is_free
        finally:
            self._open[client] -= is_free
            if not self._open[client]:
                del self._open[client]
