"""`edge-client serve`: recognition with one model file, for other programs."""

import asyncio
import logging
import signal
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer
from edgenewton.common.addresses import is_loopback
from edgenewton.common.command_line import Json
from edgenewton.common.console import fail, print_json, warn
from edgenewton.common.extras import needing

from edge_client.cli.recognise import AllowTask, Device, Engine, Model
from edge_client.inference import ArtefactError, Recognizer
from edge_client.inference.followed_file import FollowedFile
from edge_client.inference.repository import ModelRepository, RepositoryError
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
    repository: Annotated[
        Path | None,
        typer.Option(help="Folder of models that clients may load and unload by name; without it they may not."),
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Serve the file's new content whenever it is replaced, without a pause.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Serve a model with the Open Inference Protocol (gRPC and REST) and POST /recognize, until SIGTERM or Ctrl-C."""
    if not is_loopback(host):
        if not insecure:
            fail(f"{host} can be reached from other machines, and the link is plaintext: add --insecure", code=2)
        warn(f"plaintext on {host}: anybody who reaches these ports can use them.")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")

    def load(path: Path) -> Recognizer:
        # An exported file has an engine of its own, whatever runs the others.
        chosen = engine if path in (model, path.with_suffix(".pt")) else None
        return Recognizer.load(path, chosen, device, allowed, threads)

    allowed = tuple(allow_task or ())
    try:
        models = None if repository is None else ModelRepository(repository)
        asyncio.run(_serve(model, load, name, host, grpc_port, rest_port, models, follow=follow, as_json=as_json))
    except (ArtefactError, RepositoryError, TaskError, OSError) as error:
        fail(str(error))


async def _serve(
    model: Path,
    load: Callable[[Path], Recognizer],
    name: str | None,
    host: str,
    grpc_port: int,
    rest_port: int,
    repository: ModelRepository | None,
    *,
    follow: bool,
    as_json: bool,
) -> None:
    with needing("serving", "recognition"):
        from edge_client.inference.server.model_control import LoadingRules
        from edge_client.inference.server.servers import Addresses, InferenceServers
        from edge_client.inference.server.service import InferenceService

    loading = None if repository is None else LoadingRules(repository, load)
    file = FollowedFile(model)
    recognizer = load(model)
    service = InferenceService(name or recognizer.info.task)
    await service.swap(recognizer, version=1)
    servers = InferenceServers(service, Addresses(host, grpc_port if _has_grpc() else None, rest_port), loading)
    await servers.start()
    following = asyncio.create_task(file.follow(load, service.swap)) if follow else None
    name, rest = service.model, f"{host}:{servers.rest_port}"
    grpc = None if servers.grpc_port is None else f"{host}:{servers.grpc_port}"
    if as_json:
        print_json({"model": name, "grpc": grpc, "rest": rest}, is_line=True)
    else:
        typer.echo(f"model {name!r} is served: {f'gRPC on {grpc}, ' if grpc else ''}REST on {rest}")
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await stop.wait()
    if following is not None:
        following.cancel()
    await servers.stop(timeout_s=10.0)


def _has_grpc() -> bool:
    """Whether gRPC can be served; a device that does without it installs 19 MB less."""
    if all(map(find_spec, ("grpc", "grpc_health", "grpc_reflection"))):
        return True
    warn("gRPC is not served, only REST: for gRPC pip install 'edgenewton[grpc]'")
    return False
