"""A gRPC server whose streams have short limits, and a client that tries them.

It is a process of its own, for its messages would meet tritonclient's in that of the tests.

It prints how each of the streams ends.
"""

import asyncio
import logging

import grpc.aio
from edgenewton.inference import open_inference_pb2 as pb
from edgenewton.inference import open_inference_pb2_grpc

from edge_client.inference import Artefact, Recognizer
from edge_client.inference.server.grpc_server import InferenceServicer, add_to_server
from edge_client.inference.server.grpc_stream import StreamServicer
from edge_client.inference.server.service import InferenceService
from edge_client.tasks.digits import DigitsTask

SMALL_WINDOW = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 64 << 10)]


def request(samples: int) -> pb.ModelInferRequest:
    made = pb.ModelInferRequest(model_name="digits", raw_input_contents=[bytes(64 * samples)])
    made.inputs.add(name="raw", datatype="UINT8", shape=[samples, 8, 8])
    return made


async def ended(call: "grpc.aio.StreamStreamCall[pb.ModelInferRequest, pb.ModelStreamInferResponse]") -> str:
    return f"{(await call.code()).name} {await call.details()}"


async def main() -> None:
    task = DigitsTask()
    service = InferenceService("digits")
    await service.swap(Recognizer.of(Artefact.of(task, "digits", task.model(), 7)), 1)
    server = grpc.aio.server()
    add_to_server(InferenceServicer(service), server, StreamServicer(service, idle_s=1.0, stall_s=0.5).handlers())
    stalled = asyncio.Event()
    logging.getLogger("edge_client.inference.server.grpc_stream").addFilter(lambda _: stalled.set() or True)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=SMALL_WINDOW) as channel:
        stub = open_inference_pb2_grpc.GRPCInferenceServiceStub(channel)
        idle = stub.ModelStreamInfer()
        await idle.write(request(1))
        await idle.read()
        print("idle", await ended(idle), flush=True)

        greedy = stub.ModelStreamInfer()

        async def write() -> None:
            while True:
                await greedy.write(request(64))

        writing = asyncio.create_task(write())
        await stalled.wait()
        try:
            while await greedy.read() is not grpc.aio.EOF:
                pass
        except grpc.aio.AioRpcError:
            print("greedy has lost its stream", flush=True)
        writing.cancel()
        await asyncio.wait((writing,))

        given_up = stub.ModelStreamInfer()
        await given_up.write(request(1))
        await given_up.read()
        given_up.cancel()
        ordinary = stub.ModelStreamInfer(iter([request(1), request(2)]))
        print("ordinary", [len(answer.infer_response.outputs) async for answer in ordinary], await ended(ordinary))
    await server.stop(1)
    await service.stop(1)
    print("counted", service.memory.taken)


if __name__ == "__main__":
    asyncio.run(main())
