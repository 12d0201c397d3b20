"""The Open Inference Protocol v2 over REST, `POST /recognize`, metrics, and the page that documents them."""

from collections.abc import Callable, Coroutine
from dataclasses import asdict
from http import HTTPStatus
from importlib import metadata
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from edge_client.inference import errors
from edge_client.inference.server.disconnection import Watch
from edge_client.inference.server.model_control import ModelControl
from edge_client.inference.server.rest_body import answer_of, client_of, read_body
from edge_client.inference.server.rest_json import JSON_LENGTH_HEADER, RequestMessage, read_request, write_response
from edge_client.inference.server.rest_models import models_router
from edge_client.inference.server.rest_v1 import v1_router
from edge_client.inference.server.service import InferenceService
from edge_client.tasks.errors import SampleError, TaskError

_STATUS = {
    errors.BadRequestError: HTTPStatus.BAD_REQUEST,
    errors.UnknownModelError: HTTPStatus.NOT_FOUND,
    errors.NotAllowedError: HTTPStatus.FORBIDDEN,
    errors.TooLargeError: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    errors.OverloadedError: HTTPStatus.TOO_MANY_REQUESTS,
    errors.DeadlineError: HTTPStatus.GATEWAY_TIMEOUT,
    errors.UnavailableError: HTTPStatus.SERVICE_UNAVAILABLE,
}
_HEADERS = {
    HTTPStatus.TOO_MANY_REQUESTS: {"Retry-After": "1"},
    HTTPStatus.SERVICE_UNAVAILABLE: {"Retry-After": "1"},
    # What is left of a body that is too large is not read.
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: {"Connection": "close"},
}
_CLIENT_CLOSED_REQUEST = 499
"""nginx' status, which nobody reads."""
_LONGEST_ERROR = 1000
_MODEL = "/v2/models/{model}"
_VERSION = _MODEL + "/versions/{version}"
_FILE_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            kind: {"schema": {"type": "string", "format": "binary"}}
            for kind in ("image/png", "image/jpeg", "audio/wav", "text/csv", "application/octet-stream")
        },
    }
}
_INFER_BODY = {"required": True, "content": {"application/json": {"schema": RequestMessage.model_json_schema()}}}


class Recognition(BaseModel):
    """What a sample was recognised as."""

    label: str
    probability: float
    """Of that label, 0 to 1."""
    probabilities: dict[str, float]
    """Of the most probable labels, or of all; the most probable one first."""
    model: str
    version: str
    """Which version of the model says so."""
    step: int
    """Training steps behind it."""
    digest: str
    """SHA-256 of its artefact."""


class PlainRoute(APIRoute):
    """A route whose endpoint reads the request itself: it is documented, and FastAPI takes no share of its time."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the endpoint as it is."""
        endpoint: Callable[[Request], Coroutine[Any, Any, Response]] = self.endpoint
        return endpoint


def make_app(service: InferenceService, control: ModelControl | None = None) -> FastAPI:
    """Return the application of a service.

    Args:
        service: answers.
        control: loads and unloads models; by default it loads none.

    """
    app = FastAPIOffline(
        title="EdgeNewton recognition",
        description="Recognises samples with the model that this device trains.",
        version=metadata.version("edgenewton"),
    )
    # The last is for whatever nobody expected, which is logged as well, with where it came from.
    for kind in (SampleError, TaskError, errors.RequestError, ClientDisconnect, HTTPException, Exception):
        app.add_exception_handler(kind, _explain)
    app.include_router(models_router(service, control or ModelControl(service)))
    app.include_router(v1_router(service))
    _add_health(app, service)
    _add_metadata(app, service)
    _add_inference(app, service)
    return app


def _add_health(app: FastAPI, service: InferenceService) -> None:
    @app.get("/v2/health/live", tags=["health"], summary="Whether the server runs", response_class=Response)
    async def live() -> Response:
        return Response()

    @app.get("/v2/health/ready", tags=["health"], summary="Whether it answers requests", response_class=Response)
    async def ready() -> Response:
        return Response(status_code=HTTPStatus.OK if service.is_ready else HTTPStatus.SERVICE_UNAVAILABLE)

    @app.get(_MODEL + "/ready", tags=["health"], summary="Whether the model does", response_class=Response)
    @app.get(_VERSION + "/ready", tags=["health"], summary="Whether the version does", response_class=Response)
    async def model_ready(model: str, version: str = "") -> Response:
        service.serving(model, version)
        return await ready()

    @app.get("/metrics", tags=["health"], summary="Metrics in Prometheus' text format", response_class=Response)
    async def metrics() -> Response:
        return Response(service.metrics.to_text(), media_type=CONTENT_TYPE_LATEST)


def _add_metadata(app: FastAPI, service: InferenceService) -> None:
    @app.get("/v2", tags=["metadata"], summary="What the server is")
    async def server() -> dict[str, Any]:
        return asdict(service.server_metadata())

    @app.get(_MODEL, tags=["metadata"], summary="Inputs and outputs of the model")
    @app.get(_VERSION, tags=["metadata"], summary="Inputs and outputs of the version")
    async def model(model: str, version: str = "") -> dict[str, Any]:
        return asdict(service.model_metadata(model, version))


def _add_inference(app: FastAPI, service: InferenceService) -> None:
    async def infer(request: Request) -> Response:
        model, version = request.path_params["model"], request.path_params.get("version", "")
        with service.metrics.request("rest"), service.memory.request(client_of(request)) as memory:
            body = await read_body(request, service, memory)
            json_length = request.headers.get(JSON_LENGTH_HEADER)
            parsed = await service.aside(len(body), lambda: read_request(model, version, body, json_length, memory))
            with Watch(request):
                response = await service.infer(parsed.request, memory)
            content, length = await service.aside(response.text_bytes, lambda: write_response(response, parsed))
        if length is None:
            return await answer_of(request, service, content, "application/json", {})
        headers = {JSON_LENGTH_HEADER: str(length)}
        return await answer_of(request, service, content, "application/octet-stream", headers)

    for path, names in ((_MODEL, ("model",)), (_VERSION, ("model", "version"))):
        parameters = [{"name": n, "in": "path", "required": True, "schema": {"type": "string"}} for n in names]
        app.router.add_api_route(
            path + "/infer",
            infer,
            methods=["POST"],
            tags=["inference"],
            summary="Run the model on a batch",
            openapi_extra={"parameters": parameters, "requestBody": _INFER_BODY},
            route_class_override=PlainRoute,
        )

    @app.post("/recognize", tags=["inference"], summary="Recognise the file in the body", openapi_extra=_FILE_BODY)
    async def recognize(
        request: Request,
        top: Annotated[int | None, Query(ge=1, description="How many labels to tell; all unless given.")] = None,
        timeout_s: Annotated[float | None, Query(gt=0, description="Seconds that the answer may take.")] = None,
    ) -> Recognition:
        with service.metrics.request("recognize"), service.memory.request(client_of(request)) as memory:
            if request.headers.get("Content-Type", "").startswith("multipart/"):
                raise errors.BadRequestError(
                    "the body is a form; send the file itself, as `curl --data-binary @FILE` does"
                )
            body = await read_body(request, service, memory)
            with Watch(request):
                prediction, serving = await service.recognize(body, timeout_s)
        best = sorted(prediction.probabilities.items(), key=lambda item: -item[1])
        info = serving.recognizer.info
        return Recognition(
            label=prediction.label,
            probability=prediction.probability,
            probabilities=dict(best[:top]),
            model=service.model,
            version=str(serving.version),
            step=info.step,
            digest=info.digest,
        )


async def _explain(_: Request, error: Exception) -> Response:
    headers: dict[str, str] | None = None
    match error:
        case errors.NotFiniteError():
            status = HTTPStatus.UNPROCESSABLE_ENTITY
        case SampleError():
            status = HTTPStatus.BAD_REQUEST
        case TaskError():
            status = HTTPStatus.INTERNAL_SERVER_ERROR
        case ClientDisconnect():
            return Response(status_code=_CLIENT_CLOSED_REQUEST)
        case HTTPException():
            return JSONResponse({"error": str(error.detail)}, error.status_code, error.headers)
        case errors.RequestError():
            status = _STATUS.get(type(error), HTTPStatus.INTERNAL_SERVER_ERROR)
            headers = _HEADERS.get(status)
        case _:
            text = f"the server failed: {type(error).__name__}: {error}"
            return JSONResponse({"error": text}, HTTPStatus.INTERNAL_SERVER_ERROR)
    return JSONResponse({"error": str(error)[:_LONGEST_ERROR]}, status, headers)
