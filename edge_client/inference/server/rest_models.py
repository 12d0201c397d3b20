"""Over REST: which models there are, their configuration and statistics, and the model repository."""

from collections.abc import Callable, Coroutine
from dataclasses import asdict
from importlib import metadata
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field, StrictBool, ValidationError

from edge_client.inference.errors import BadRequestError
from edge_client.inference.server.model_config import model_config, model_statistics
from edge_client.inference.server.model_control import ModelControl
from edge_client.inference.server.rest_body import client_of, read_body
from edge_client.inference.server.rest_json import describe
from edge_client.inference.server.service import InferenceService
from edge_client.inference.server.sizes import SMALL

MessageT = TypeVar("MessageT", bound=BaseModel)
_MODEL = "/v2/models/{model}"
_VERSION = _MODEL + "/versions/{version}"
_STORED = "/v2/repository/models/{model}"


class IndexMessage(BaseModel):
    """Asks for the index of the repository."""

    model_config = ConfigDict(extra="forbid")

    ready: StrictBool = False
    """Whether only models that answer are wanted."""


class ControlMessage(BaseModel):
    """Asks to load or to unload a model."""

    model_config = ConfigDict(extra="forbid")

    parameters: Annotated[dict[str, Any], Field(max_length=64)] = {}


def models_router(service: InferenceService, control: ModelControl) -> APIRouter:
    """Return the routes of a service's models; they go before those with a model's name in their place."""
    router = APIRouter()
    _add_descriptions(router, service)
    _add_repository(router, service, control)
    return router


def _add_descriptions(router: APIRouter, service: InferenceService) -> None:
    @router.get("/", tags=["metadata"], summary="That the server runs, and what it serves")
    async def root() -> dict[str, Any]:
        return {
            "status": "alive",
            "name": "edgenewton",
            "version": metadata.version("edgenewton"),
            "models": [model.name for model in service.models],
            "docs": "/docs",
        }

    @router.get("/v2/models", tags=["metadata"], summary="Names of the models")
    async def models() -> dict[str, Any]:
        return {"models": [model.name for model in service.models]}

    @router.get("/v2/models/stats", tags=["metadata"], summary="Statistics of all models")
    @router.get(_MODEL + "/stats", tags=["metadata"], summary="Statistics of a model")
    @router.get(_VERSION + "/stats", tags=["metadata"], summary="Statistics of a version")
    async def stats(model: str = "", version: str = "") -> dict[str, Any]:
        return model_statistics(service, model, version)

    @router.get(_MODEL + "/config", tags=["metadata"], summary="Configuration of a model")
    @router.get(_VERSION + "/config", tags=["metadata"], summary="Configuration of a version")
    async def config(model: str, version: str = "") -> dict[str, Any]:
        return model_config(service, model, version)


def _add_repository(router: APIRouter, service: InferenceService, control: ModelControl) -> None:
    async def read(request: Request, kind: type[MessageT]) -> MessageT:
        with service.memory.request(client_of(request)) as memory:
            return _message(await read_body(request, service, memory, SMALL), kind)

    def add(path: str, summary: str, answer: Callable[..., Coroutine[Any, Any, Any]]) -> None:
        router.add_api_route(path, answer, methods=["POST"], tags=["repository"], summary=summary)

    async def index(request: Request) -> list[dict[str, Any]]:
        message = await read(request, IndexMessage)
        return [asdict(entry) for entry in await control.index(is_ready=message.ready)]

    async def load(request: Request, model: str) -> dict[str, Any]:
        await control.load(model, (await read(request, ControlMessage)).parameters)
        return {}

    async def unload(request: Request, model: str) -> dict[str, Any]:
        await control.unload(model, (await read(request, ControlMessage)).parameters)
        return {}

    add("/v2/repository/index", "Models that are loaded, and that could be", index)
    add(_STORED + "/load", "Load a model, or its newest version in place of the one that serves", load)
    add(_STORED + "/unload", "Unload a model", unload)


def _message(body: bytes, kind: type[MessageT]) -> MessageT:
    try:
        return kind.model_validate_json(body or b"{}")
    except ValidationError as error:
        raise BadRequestError("; ".join(map(describe, error.errors()[:8]))) from None
