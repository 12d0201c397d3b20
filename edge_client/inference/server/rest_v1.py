"""KServe's protocol of version 1 over REST (kserve.github.io, "Data Plane (V1)"), which is TensorFlow Serving's.

An instance is a decoded sample (numbers in nested lists), a text, or a file as {"b64": "..."}. TensorFlow Serving's
form with the input's name works as well: {"raw": [...]}, {"encoded": {"b64": "..."}}. A prediction is an object with
both outputs.
"""

import base64
import binascii
import json
from http import HTTPStatus
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edge_client.inference.errors import BadRequestError
from edge_client.inference.server.datatypes import NUMPY_TYPES, OF_TORCH, array_of, from_values
from edge_client.inference.server.disconnection import Watch
from edge_client.inference.server.memory import RequestMemory
from edge_client.inference.server.protocol import InferRequest, InferResponse, InputTensor
from edge_client.inference.server.rest_body import answer_of, client_of, read_body
from edge_client.inference.server.rest_json import describe, from_text
from edge_client.inference.server.service import ENCODED, LABEL, PROBABILITIES, RAW, InferenceService
from edge_client.inference.server.sizes import json_bytes


class PredictMessage(BaseModel):
    """A request for predictions."""

    model_config = ConfigDict(extra="forbid")

    instances: Annotated[list[Any], Field(min_length=1)]
    """Samples: numbers in nested lists, texts, or {"b64": "..."}, all of one kind."""


def v1_router(service: InferenceService) -> APIRouter:
    """Return the routes of the protocol."""
    router = APIRouter()

    @router.get("/v1/models", tags=["v1"], summary="Names of the models")
    async def models() -> dict[str, Any]:
        return {"models": [model.name for model in service.models]}

    @router.get("/v1/models/{model}", tags=["v1"], summary="Whether a model answers")
    async def model(model: str) -> Response:
        is_ready = service.find(model).serving is not None
        status = HTTPStatus.OK if is_ready else HTTPStatus.SERVICE_UNAVAILABLE
        return JSONResponse({"name": model, "ready": is_ready}, status)

    async def predict(request: Request, model: str) -> Response:
        with service.metrics.request("v1"), service.memory.request(client_of(request)) as memory:
            body = await read_body(request, service, memory)
            asked = await service.aside(len(body), lambda: _read(service, model, body, memory))
            with Watch(request):
                response = await service.infer(asked, memory)
            content = await service.aside(response.text_bytes, lambda: _write(response))
        return await answer_of(request, service, content, "application/json", {})

    body = {"required": True, "content": {"application/json": {"schema": PredictMessage.model_json_schema()}}}
    router.add_api_route(
        "/v1/models/{model}:predict",
        predict,
        methods=["POST"],
        tags=["v1"],
        summary="Recognise samples",
        openapi_extra={"requestBody": body},
    )
    return router


def _read(service: InferenceService, model: str, body: bytes, memory: RequestMemory) -> InferRequest:
    memory.take(json_bytes(body, len(body)), "the request")
    try:
        instances = PredictMessage.model_validate(from_text(body)).instances
    except ValidationError as error:
        raise BadRequestError("; ".join(map(describe, error.errors()[:8]))) from None
    except ValueError:
        raise BadRequestError('the body is not JSON of the form {"instances": [...]}') from None
    kinds = {_kind(instance) for instance in instances}
    if len(kinds) > 1:
        raise BadRequestError("the instances are of several kinds: send numbers and files in requests of their own")
    if kinds == {ENCODED}:
        contents = [_content(place, instance) for place, instance in enumerate(instances)]
        return InferRequest(model, "", (InputTensor(ENCODED, "BYTES", (len(contents),), contents),))
    info = service.serving(model).recognizer.info
    values = [instance[RAW] if isinstance(instance, dict) else instance for instance in instances]
    # What JSON holds: floats are told apart, so that the service can refuse those that the model has no numbers for.
    datatype, shape = _numbers(values, OF_TORCH[info.raw_dtype])
    return InferRequest(model, "", (InputTensor(RAW, datatype, shape, from_values(RAW, datatype, shape, values)),))


def _numbers(values: list[Any], wanted: str) -> tuple[str, tuple[int, ...]]:
    """Return datatype and shape of numbers, as exact as they were sent."""
    try:
        given = array_of(values)
    except (ValueError, OverflowError, TypeError):
        raise BadRequestError("the instances are not numbers in rows of equal length") from None
    if given.dtype.kind == "f" and NUMPY_TYPES[wanted].kind in "iu":
        return "FP64", given.shape
    return wanted, given.shape


def _kind(instance: object) -> str:
    if isinstance(instance, str):
        return ENCODED
    if isinstance(instance, dict):
        if instance.keys() in ({"b64"}, {ENCODED}):
            return ENCODED
        if instance.keys() == {RAW}:
            return RAW
        names = ", ".join(repr(str(name)[:40]) for name in list(instance)[:4]) or "nothing"
        raise BadRequestError(f"an instance has {names}; it has one of 'b64', '{RAW}', '{ENCODED}'")
    return RAW


def _content(place: int, instance: Any) -> bytes:
    if isinstance(instance, dict) and ENCODED in instance:
        instance = instance[ENCODED]
    if isinstance(instance, str):
        return instance.encode()
    text = instance.get("b64") if isinstance(instance, dict) and len(instance) == 1 else None
    if not isinstance(text, str):
        raise BadRequestError(f'instance {place} is no text, and not of the form {{"b64": "..."}}')
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise BadRequestError(f"instance {place} is not base64, as 'b64' says") from None


def _write(response: InferResponse) -> bytes:
    outputs = {output.name: output.data for output in response.outputs}
    probabilities, labels = outputs[PROBABILITIES], outputs[LABEL]
    predictions = [
        {LABEL: bytes(label).decode(), PROBABILITIES: row}
        for label, row in zip(labels, np.asarray(probabilities).tolist(), strict=True)
    ]
    return json.dumps({"predictions": predictions}, allow_nan=False).encode()
