"""`edge-client serve`: recognition with one model file, for other programs."""

import asyncio
import logging
import signal
from importlib.util import find_spec
from typing import Annotated

import typer
from edgenewton.common.addresses import is_loopback
from edgenewton.common.console import fail, warn
from edgenewton.common.extras import needing

from edge_client.cli.recognise import AllowTask, Device, Engine, Model
from edge_client.inference import ArtefactError, Recognizer
from edge_client.tasks.errors import TaskError

Port = Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.", min=0, max=65_535)]


def serve(
    model: Model,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    grpc_port: Port = 8001,
    rest_port: Port = 8000,
    name: Annotated[
        str | None, typer.Option(help="Name of the model for clients; that of its task unless given.")
    ] = None,
    engine: Engine = None,
    device: Device = "cpu",
    threads: Annotated[int, typer.Option(help="Threads that the model may use.", min=1)] = 1,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Allow plaintext on an address that is not loopback.")
    ] = False,
    allow_task: AllowTask = None,
) -> None:
    """Serve a model with the Open Inference Protocol (gRPC and REST) and POST /recognize, until SIGTERM or Ctrl-C."""
    if not is_loopback(host):
        if not insecure:
            fail(f"{host} can be reached from other machines, and the link is plaintext: add --insecure", code=2)
        warn(f"plaintext on {host}: anybody who reaches these ports can use them.")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    try:
        recognizer = Recognizer.load(model, engine, device, allow_task or (), threads)
        asyncio.run(_serve(recognizer, name or recognizer.info.task, host, grpc_port, rest_port))
    except (ArtefactError, TaskError, OSError) as error:
        fail(str(error))


async def _serve(recognizer: Recognizer, name: str, host: str, grpc_port: int, rest_port: int) -> None:
    with needing("serving", "recognition"):
        from edge_client.inference.server.servers import Addresses, InferenceServers
        from edge_client.inference.server.service import InferenceService

    service = InferenceService(name)
    await service.swap(recognizer, version=1)
    servers = InferenceServers(service, Addresses(host, grpc_port if _has_grpc() else None, rest_port))
    await servers.start()
    grpc = "" if servers.grpc_port is None else f"gRPC on {host}:{servers.grpc_port}, "
    typer.echo(f"model {name!r} is served: {grpc}REST on {host}:{servers.rest_port}")
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await stop.wait()
    await servers.stop(timeout_s=10.0)


def _has_grpc() -> bool:
    """Whether gRPC can be served; a device that does without it installs 19 MB less."""
    if all(map(find_spec, ("grpc", "grpc_health", "grpc_reflection"))):
        return True
    warn("gRPC is not served, only REST: for gRPC pip install 'edgenewton[grpc]'")
    return False
