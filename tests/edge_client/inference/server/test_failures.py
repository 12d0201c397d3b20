"""Samples that overflow inside the model, and tasks whose code fails: real servers, and what clients are told."""

import asyncio
import json

import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton
from engines import EVERY_ENGINE
from fragile_task import HUGE
from server_process import serving
from tritonclient.utils import InferenceServerException

from edge_client.inference.server.protocol import InferResponse, OutputTensor
from edge_client.inference.server.rest_server import make_app
from edge_client.inference.server.service import InferenceService

NAME = "fragile_task:FourNumbers"
INFER = f"/v2/models/{NAME}/infer"
NOT_FINITE = "the model's output 'probabilities' is not finite, for its numbers overflow inside the model"


@pytest.fixture(scope="module", params=EVERY_ENGINE)
def server(request, tmp_path_factory):
    with serving(NAME, tmp_path_factory.mktemp(request.param), request.param) as server:
        yield server


@pytest.fixture(scope="module")
def fragile(tmp_path_factory):
    with serving("fragile_task:Fragile", tmp_path_factory.mktemp("fragile"), may_fail=True) as server:
        yield server


def tensor(numbers):
    array = np.array(numbers, np.float32)
    made = triton.InferInput("raw", array.shape, "FP32")
    made.set_data_from_numpy(array)
    return made


def files(*contents):
    made = triton.InferInput("encoded", [len(contents)], "BYTES")
    made.set_data_from_numpy(np.array(contents, dtype=object))
    return made


def refusal(server, model, given, **arguments):
    """Return the status and the sentence that gRPC gives."""
    with triton.InferenceServerClient(server.grpc) as client, pytest.raises(InferenceServerException) as caught:
        client.infer(model, [given], **arguments)
    server.assert_alive()
    return caught.value.status(), caught.value.message()


def answered(server, model):
    with triton.InferenceServerClient(server.grpc) as client:
        return client.infer(model, [tensor([[1, 2, 3, 4]])]).as_numpy("probabilities").sum() == pytest.approx(1)


def strict(answer):
    """Return the JSON of an answer, which must be JSON: no NaN and no Infinity."""

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(answer.text, parse_constant=refuse)


def body(numbers, **more):
    return json.dumps({"inputs": [{"name": "raw", "datatype": "FP32", "shape": [1, 4], "data": numbers}]} | more)


@pytest.mark.parametrize(
    "outputs",
    [
        None,
        [triton.InferRequestedOutput("label")],
        [triton.InferRequestedOutput("probabilities", class_count=2)],
    ],
)
def test_an_overflow_is_an_error_over_grpc(server, outputs):
    given = tensor([[1, 2, 3, 4], [HUGE] * 4, [0] * 4])
    code, message = refusal(server, NAME, given, outputs=outputs)
    assert code == "StatusCode.INVALID_ARGUMENT"
    assert message.startswith(f"sample 2 of 3: {NOT_FINITE}: send numbers of the size that the model was trained with")
    code, message = refusal(server, NAME, files(b"1,2,3,4", b"-3e38,-3e38,-3e38,-3e38"), outputs=outputs)
    assert (code, message.startswith(f"sample 2 of 2: {NOT_FINITE}")) == ("StatusCode.INVALID_ARGUMENT", True)
    assert answered(server, NAME)


def test_an_overflow_is_an_error_over_rest_and_is_counted(server):
    with httpx.Client(base_url=f"http://{server.rest}", timeout=30) as http:
        for more in (
            {},
            {"outputs": [{"name": "label"}]},
            {"outputs": [{"name": "probabilities", "parameters": {"classification": 1}}]},
            {"parameters": {"binary_data_output": True}},
        ):
            answer = http.post(INFER, content=body([HUGE] * 4, **more))
            assert answer.status_code == 422
            assert strict(answer)["error"].startswith(f"the sample: {NOT_FINITE}")
            assert answer.headers["Content-Type"] == "application/json"
        answer = http.post("/recognize", content=b"3e38,3e38,3e38,3e38")
        assert (answer.status_code, NOT_FINITE in strict(answer)["error"]) == (422, True)
        assert strict(http.post(INFER, content=body([1, 2, 3, 4])))["outputs"][1]["data"][0] in "abc"
        metrics = http.get("/metrics").text
    assert 'edgenewton_requests_total{api="rest",outcome="not_finite"} 4.0' in metrics
    assert 'edgenewton_requests_total{api="recognize",outcome="not_finite"} 1.0' in metrics


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("[1, NaN, 2, 3]", "the sample holds NaN or infinity"),
        ("[1, -Infinity, 2, 3]", "the sample holds NaN or infinity"),
        ("[1, 1e39, 2, 3]", "input 'raw': FP32 goes from -3.40282e+38 to 3.40282e+38; the data do not"),
        ("[1, 1e999, 2, 3]", "the sample holds NaN or infinity"),
        ('[1, "NaN", 2, 3]', "input 'raw': the data are not FP32"),
        ("[1, null, 2, 3]", "input 'raw': the data are not FP32"),
    ],
)
def test_numbers_that_are_none_are_refused_as_they_come(fragile, data, message):
    content = body("DATA").replace('"DATA"', data)
    answer = httpx.post(f"http://{fragile.rest}/v2/models/fragile_task:Fragile/infer", content=content, timeout=30)
    assert (answer.status_code, strict(answer)["error"]) == (400, message)


def test_of_several_samples_the_bad_one_is_named(fragile):
    given = tensor([[0] * 4, [0] * 4, [0, np.inf, 0, 0]])
    code, message = refusal(fragile, "fragile_task:Fragile", given)
    assert (code, message) == (
        "StatusCode.INVALID_ARGUMENT",
        "sample 3 of 3: the sample holds NaN or infinity",
    )
    code, message = refusal(fragile, "fragile_task:Fragile", files(b"1,2,3,4", b"x"))
    assert (code, message) == ("StatusCode.INVALID_ARGUMENT", "sample 2 of 2: b'x' is not four numbers")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"key", "decode of task 'fragile_task:Fragile' failed: KeyError: 'no such entry'"),
        (b"exit", "decode of task 'fragile_task:Fragile' failed: SystemExit: 3"),
        (b"none", "decode of task 'fragile_task:Fragile' gave a NoneType; it must return a tensor"),
        (b"13,0,0,0", "the model of task 'fragile_task:Fragile' failed: ArithmeticError: 13 is unlucky"),
    ],
)
def test_a_task_whose_code_fails_is_told_in_a_sentence_and_logged(fragile, content, message):
    before = len(fragile.log.read_text())
    answer = httpx.post(f"http://{fragile.rest}/recognize", content=content, timeout=30)
    assert (answer.status_code, strict(answer)) == (500, {"error": message})
    logged = fragile.log.read_text()[before:]
    assert "Traceback" in logged
    assert message in logged
    told = refusal(fragile, "fragile_task:Fragile", files(content))
    assert told == ("StatusCode.INTERNAL", message)
    assert answered(fragile, "fragile_task:Fragile")
    metrics = httpx.get(f"http://{fragile.rest}/metrics").text
    assert 'edgenewton_requests_total{api="recognize",outcome="failed"}' in metrics


@pytest.mark.parametrize("path", ["/recognize", "/v2/models/m/infer"])
def test_whatever_nobody_expected_is_an_error_in_json(monkeypatch, path):
    service = InferenceService("m")

    async def infinite(*_):
        return InferResponse("m", "1", "", (OutputTensor("probabilities", "FP32", (1,), np.array([np.inf])),))

    async def broken(*_):
        raise ZeroDivisionError("by nobody")

    monkeypatch.setattr(service, "infer", infinite)
    monkeypatch.setattr(service, "recognize", broken)

    async def post():
        transport = httpx.ASGITransport(make_app(service), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as http:
            return await http.post(path, content=b'{"inputs": []}')

    answer = asyncio.run(post())
    assert answer.status_code == 500
    assert strict(answer)["error"].startswith(
        "the server failed: ZeroDivisionError: by nobody" if path == "/recognize" else "the server failed: ValueError"
    )
