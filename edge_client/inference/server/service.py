"""The service behind both servers: it checks requests, lets a model's batcher answer them, and swaps versions."""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from typing import Any, TypeVar

import numpy as np
from edgenewton.common.reception import Reception
from numpy.typing import NDArray

from edge_client.inference.batcher import Answer, Batcher, Serving
from edge_client.inference.errors import BadRequestError, TooLargeError, UnavailableError, UnknownModelError
from edge_client.inference.recognizer import Prediction, Recognizer
from edge_client.inference.server.casting import cast_exactly
from edge_client.inference.server.datatypes import OF_TORCH
from edge_client.inference.server.memory import MemoryBudget, RequestMemory
from edge_client.inference.server.metrics import Metrics
from edge_client.inference.server.protocol import (
    Data,
    InferRequest,
    InferResponse,
    InputTensor,
    ModelMetadata,
    OutputTensor,
    RequestedOutput,
    ServerMetadata,
    TensorMetadata,
    text_elements,
)
from edge_client.inference.server.served_model import ServedModel
from edge_client.inference.server.sizes import SMALL, answer_bytes
from edge_client.tasks.errors import SampleError

log = logging.getLogger(__name__)

T = TypeVar("T")

_MEMORY_PER_TEXT = 8
"""Bytes of memory that are counted for a byte of an answer as text, about."""
RAW, ENCODED = "raw", "encoded"
"""Inputs, of which a request has one: decoded samples as numbers, or files (PNG, WAV, ...) as BYTES."""
PROBABILITIES, LABEL = "probabilities", "label"
"""Outputs."""


@dataclass(frozen=True)
class RequestLimits:
    """What a request may have, and how many may wait."""

    max_batch: int = 64
    """Samples in a run of the model, and so in a request."""
    max_waiting: int = 256
    """Samples that wait; a request beyond it is refused at once."""
    max_request_bytes: int = 16 << 20
    """Size of a request."""
    max_memory_bytes: int = 512 << 20
    """What all requests may take that are answered at the same time; those of one client may take half of it."""
    request_deadline_s: float = 30.0
    """Seconds that an answer may take, unless the request says less."""
    max_connections: int = 512
    """Of each server; one that waits for its client makes room for one that comes."""
    max_connections_per_client: int = 128


class InferenceService:
    """Answers requests for models by their names. Use it on one running event loop.

    Args:
        model: name of the model that is always there, though it may have no version yet.
        limits: what a request may have.
        metrics: what is measured.

    """

    def __init__(self, model: str, limits: RequestLimits | None = None, metrics: Metrics | None = None) -> None:
        self.model = model
        self.limits = limits or RequestLimits()
        self.metrics = metrics or Metrics()
        self._models = {model: self._new_model(model)}
        self.batcher: Batcher = self._models[model].batcher
        """Of the model that is always there."""
        self.metrics.waiting.set_function(lambda: sum([len(model.batcher.queue) for model in self._models.values()]))
        self.memory = MemoryBudget(self.limits.max_memory_bytes)
        self.metrics.memory.set_function(lambda: self.memory.taken)
        places = max(2, self.limits.max_memory_bytes // self.limits.max_request_bytes)
        self.reception = Reception(places, places // 2)
        """Of messages of gRPC; REST's bodies are counted as they come."""
        self._aside = ThreadPoolExecutor(1, thread_name_prefix="parse")
        self._is_stopping = False

    @property
    def is_ready(self) -> bool:
        """Whether requests are answered."""
        return self.batcher.serving is not None and not self._is_stopping

    @property
    def models(self) -> tuple[ServedModel, ...]:
        """The models that answer, or will once they have a version; the first one is always there."""
        return tuple(self._models.values())

    async def swap(self, recognizer: Recognizer, version: int, model: str = "") -> None:
        """Let a version serve; it has run once before it answers its first request.

        Args:
            recognizer: runs it.
            version: its number.
            model: that it is of; one that is not there yet comes to be. Empty for the one that is always there.

        """
        await asyncio.to_thread(recognizer.probabilities, recognizer.info.blank(1))
        name = model or self.model
        if name not in self._models:
            self._models[name] = self._new_model(name)
        self._models[name].swap(recognizer, version)
        if name == self.model:
            self.metrics.observe_swap(version, recognizer.info.step)
        log.info("version %d of %r serves (after %d steps)", version, name, recognizer.info.step)

    async def withdraw(self, model: str, timeout_s: float) -> None:
        """Answer a model's requests that wait, and no more; the one that is always there cannot be withdrawn."""
        if model != self.model and (withdrawn := self._models.pop(model, None)) is not None:
            await withdrawn.batcher.drain(timeout_s, f"model {model!r} was unloaded")
            log.info("%r serves no more", model)

    def _new_model(self, name: str) -> ServedModel:
        return ServedModel(name, self.limits.max_batch, self.limits.max_waiting, self.metrics.observe_batch)

    async def stop(self, timeout_s: float) -> None:
        """Answer the requests that wait, and no more."""
        self._is_stopping = True
        await asyncio.gather(*[model.batcher.drain(timeout_s) for model in self.models])
        self._aside.shutdown(wait=False, cancel_futures=True)

    async def aside(self, size: int, function: Callable[[], T]) -> T:
        """Return what a function gives that takes as long as `size` bytes need; one that takes long runs in a thread.

        One at a time does, so that whoever sends large requests gets no larger share of the processor.
        """
        if size <= SMALL:
            return function()
        try:
            return await asyncio.get_running_loop().run_in_executor(self._aside, function)
        except RuntimeError:
            if self._is_stopping:
                raise UnavailableError("the server stops") from None
            raise

    # ------------------------------------------------------------------ metadata

    def server_metadata(self) -> ServerMetadata:
        """Return what the server is."""
        return ServerMetadata("edgenewton", metadata.version("edgenewton"))

    def find(self, model: str) -> ServedModel:
        """Return a model.

        Raises:
            UnknownModelError: there is none of the name.

        """
        found = self._models.get(model)
        if found is None:
            others = ", ".join(map(repr, self._models))
            raise UnknownModelError(f"model {model!r} is unknown; this device serves {others}")
        return found

    def serving(self, model: str, version: str = "") -> Serving:
        """Return the version that serves, if it is the one that is asked for.

        Raises:
            UnknownModelError: it is not.
            UnavailableError: none serves yet.

        """
        return self._serving_of(self.find(model), version)

    def _serving_of(self, model: ServedModel, version: str = "") -> Serving:
        serving = model.serving
        if serving is None:
            raise UnavailableError(
                f"model {model.name!r} has no version yet; train one, or put one into the model store"
            )
        if version not in ("", str(serving.version)):
            raise UnknownModelError(
                f"version {version!r} of {model.name!r} does not serve; version {serving.version} does"
            )
        return serving

    def model_metadata(self, model: str, version: str = "") -> ModelMetadata:
        """Return what a client must know of the model.

        Raises:
            RequestError: as `serving`.

        """
        serving = self.serving(model, version)
        info = serving.recognizer.info
        return ModelMetadata(
            name=model,
            versions=(str(serving.version),),
            platform=f"edgenewton_{serving.recognizer.engine}",
            inputs=(
                TensorMetadata(RAW, OF_TORCH[info.raw_dtype], (-1, *info.raw_shape)),
                TensorMetadata(ENCODED, "BYTES", (-1,)),
            ),
            outputs=(
                TensorMetadata(PROBABILITIES, "FP32", (-1, len(info.labels))),
                TensorMetadata(LABEL, "BYTES", (-1,)),
            ),
        )

    # ------------------------------------------------------------------ inference

    async def infer(self, request: InferRequest, memory: RequestMemory) -> InferResponse:
        """Answer a request of the protocol.

        Args:
            request: what is asked.
            memory: counts what the answer takes.

        Raises:
            RequestError: it cannot be answered; see its subclasses.
            SampleError: its samples cannot be used, or make the model's numbers overflow.
            TaskError: the task's own code failed.

        """
        model = self.find(request.model)
        serving = self._serving_of(model, request.version)
        began_ns = time.perf_counter_ns()
        try:
            answer, response = await self._infer(model, serving, request, memory)
        except BaseException:
            serving.statistics.note_failure(time.perf_counter_ns() - began_ns)
            raise
        answer.serving.statistics.note_success(len(answer.probabilities), time.perf_counter_ns() - began_ns)
        return response

    async def recognize(self, content: bytes, timeout_s: float | None = None) -> tuple[Prediction, Serving]:
        """Recognise the sample in a file's content; return which version did, too.

        Raises:
            RequestError: it cannot be answered; see its subclasses.
            SampleError: the sample cannot be used, or makes the model's numbers overflow.
            TaskError: the task's own code failed.

        """
        model = self.find(self.model)
        serving = self._serving_of(model)
        began_ns = time.perf_counter_ns()
        try:
            answer = await self._decode_and_infer(model, serving, [content], self._timeout(timeout_s))
            prediction = answer.serving.recognizer.predictions(answer.probabilities)[0]
        except BaseException:
            serving.statistics.note_failure(time.perf_counter_ns() - began_ns)
            raise
        answer.serving.statistics.note_success(1, time.perf_counter_ns() - began_ns)
        return prediction, answer.serving

    async def _infer(
        self, model: ServedModel, serving: Serving, request: InferRequest, memory: RequestMemory
    ) -> tuple[Answer, InferResponse]:
        _check_outputs(request.outputs)
        if len(request.inputs) != 1:
            names = ", ".join(repr(tensor.name) for tensor in request.inputs[:4]) or "none"
            raise BadRequestError(f"a request has one input, '{RAW}' or '{ENCODED}'; this one has {names}")
        timeout_s = self._timeout(request.timeout_s)
        outputs = request.outputs or (RequestedOutput(PROBABILITIES), RequestedOutput(LABEL))
        (tensor,) = request.inputs
        samples = tensor.shape[0] if tensor.shape else 0
        self._check_count(samples)
        size = answer_bytes(outputs, samples, serving.recognizer.info.labels, PROBABILITIES)
        memory.take(size, f"the answer for {samples} samples")
        if tensor.name == RAW:
            answer = await self._infer_raw(model, serving, tensor, timeout_s)
        elif tensor.name == ENCODED:
            answer = await self._infer_encoded(model, serving, tensor, timeout_s)
        else:
            raise BadRequestError(f"input {tensor.name!r} is unknown; known are '{RAW}', '{ENCODED}'")
        if request.version not in ("", str(answer.serving.version)):
            raise UnknownModelError(f"version {request.version!r} was replaced by {answer.serving.version}")
        text_bytes = size // _MEMORY_PER_TEXT
        tensors = await self.aside(text_bytes, lambda: tuple(_output(answer, output) for output in outputs))
        return answer, InferResponse(request.model, str(answer.serving.version), request.id, tensors, text_bytes)

    async def _infer_raw(self, model: ServedModel, serving: Serving, tensor: InputTensor, timeout_s: float) -> Answer:
        info = serving.recognizer.info
        datatype = OF_TORCH[info.raw_dtype]
        if not isinstance(tensor.data, np.ndarray):
            raise BadRequestError(f"input '{RAW}' is {tensor.datatype}; the model expects {datatype}")
        if len(tensor.shape) != 1 + len(info.raw_shape) or tensor.shape[1:] != info.raw_shape:
            raise BadRequestError(
                f"input '{RAW}' has shape {list(tensor.shape)}; the model expects {[-1, *info.raw_shape]}"
            )
        self._check_count(tensor.shape[0])
        data = tensor.data if tensor.datatype == datatype else cast_exactly(RAW, tensor.datatype, tensor.data, datatype)
        serving.recognizer.check(data)
        return await model.batcher.submit(data, tensor.shape[0], timeout_s)

    async def _infer_encoded(
        self, model: ServedModel, serving: Serving, tensor: InputTensor, timeout_s: float
    ) -> Answer:
        if tensor.datatype != "BYTES" or isinstance(tensor.data, np.ndarray):
            raise BadRequestError(f"input '{ENCODED}' is {tensor.datatype}; the model expects BYTES")
        if len(tensor.shape) != 1 and tuple(tensor.shape[1:]) != (1,):
            raise BadRequestError(f"input '{ENCODED}' has shape {list(tensor.shape)}; the model expects [-1]")
        self._check_count(len(tensor.data))
        return await self._decode_and_infer(model, serving, tensor.data, timeout_s)

    async def _decode_and_infer(
        self, model: ServedModel, serving: Serving, contents: Sequence[bytes], timeout_s: float
    ) -> Answer:
        def decode() -> NDArray[Any]:
            if len(contents) == 1:
                return serving.recognizer.decode(contents[0])[None]
            return np.stack([_decode_one_of(serving, contents, place) for place in range(len(contents))])

        return await model.batcher.submit(decode, len(contents), timeout_s)

    def _check_count(self, samples: int) -> None:
        if samples < 1:
            raise BadRequestError("the request has no samples")
        if samples > self.limits.max_batch:
            raise TooLargeError(f"the request has {samples} samples; {self.limits.max_batch} are the limit")

    def _timeout(self, timeout_s: float | None) -> float:
        if timeout_s is None:
            return self.limits.request_deadline_s
        if not (timeout_s > 0 and math.isfinite(timeout_s)):
            raise BadRequestError(f"the request's timeout is {timeout_s:g} s; it must be above 0")
        return min(timeout_s, self.limits.request_deadline_s)


def _check_outputs(outputs: Sequence[RequestedOutput]) -> None:
    names = set()
    for output in outputs:
        if output.name not in (PROBABILITIES, LABEL):
            raise BadRequestError(f"output {output.name!r} is unknown; known are '{PROBABILITIES}', '{LABEL}'")
        if output.name in names:
            raise BadRequestError(f"output {output.name!r} is asked for more than once; name it once")
        if output.class_count and output.name != PROBABILITIES:
            raise BadRequestError(
                f"output {output.name!r} has no classes: ask for the classification of '{PROBABILITIES}'"
            )
        names.add(output.name)


def _decode_one_of(serving: Serving, contents: Sequence[bytes], place: int) -> NDArray[Any]:
    try:
        return serving.recognizer.decode(contents[place])
    except SampleError as error:
        raise SampleError(f"sample {place + 1} of {len(contents)}: {error}") from None


def _output(answer: Answer, output: RequestedOutput) -> OutputTensor:
    probabilities = answer.probabilities
    labels = answer.serving.recognizer.info.labels
    if output.name == PROBABILITIES and output.class_count:
        best_first = np.argsort(-probabilities, axis=1, kind="stable")[:, : output.class_count]
        texts = [
            f"{row[index]:f}:{index}:{labels[index]}"
            for row, indices in zip(probabilities.tolist(), best_first.tolist(), strict=True)
            for index in indices
        ]
        return OutputTensor(PROBABILITIES, "BYTES", best_first.shape, text_elements(texts))
    if output.name == PROBABILITIES:
        data: Data = probabilities
        return OutputTensor(PROBABILITIES, "FP32", probabilities.shape, data)
    best = [labels[index] for index in probabilities.argmax(axis=1).tolist()]
    return OutputTensor(LABEL, "BYTES", (len(best),), text_elements(best))
