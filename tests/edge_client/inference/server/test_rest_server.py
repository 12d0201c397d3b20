"""The real tritonclient over HTTP, then what other clients send, good and bad."""

import base64
import io
import json
import socket

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
from PIL import Image
from tritonclient.utils import InferenceServerException

from edge_client.tasks.digits import DigitsTask

TASK = DigitsTask()
INFER = "/v2/models/digits/infer"


@pytest.fixture(scope="module")
def client(server):
    with triton.InferenceServerClient(server.rest) as client:
        yield client


@pytest.fixture(scope="module")
def http(server):
    with httpx.Client(base_url=f"http://{server.rest}", timeout=30) as http:
        yield http


def pixels(count):
    return np.stack([np.asarray(TASK.sample_image(index)) for index in range(count)])


def image_file(index, kind="PNG"):
    file = io.BytesIO()
    TASK.sample_image(index).save(file, kind)
    return file.getvalue()


def expected(server, count):
    predictions = server.recognizer.predict([TASK.sample_image(index) for index in range(count)])
    return (
        np.array([list(p.probabilities.values()) for p in predictions], np.float32),
        [p.label.encode() for p in predictions],
    )


def test_readiness_and_metadata(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("digits", "1")
    assert not client.is_model_ready("digits", "2")
    extensions = client.get_server_metadata()["extensions"]
    assert {"classification", "binary_tensor_data", "model_repository", "statistics"} <= set(extensions)
    metadata = client.get_model_metadata("digits")
    assert metadata["inputs"][0] == {"name": "raw", "datatype": "UINT8", "shape": [-1, 8, 8]}
    with pytest.raises(InferenceServerException, match="model 'trees' is unknown"):
        client.get_model_metadata("trees")


@pytest.mark.parametrize("is_binary", [True, False])
@pytest.mark.parametrize("count", [1, 4])
def test_answers_are_those_of_the_recognizer(server, client, is_binary, count):
    probabilities, labels = expected(server, count)
    given = triton.InferInput("raw", [count, 8, 8], "UINT8")
    given.set_data_from_numpy(pixels(count), binary_data=is_binary)
    outputs = [triton.InferRequestedOutput(name, binary_data=is_binary) for name in ("probabilities", "label")]
    result = client.infer("digits", [given], outputs=outputs, request_id="x")
    np.testing.assert_allclose(result.as_numpy("probabilities"), probabilities, atol=1e-6)
    assert [label if is_binary else label.encode() for label in result.as_numpy("label")] == labels
    assert result.get_response()["model_version"] == "1"


def test_files_as_bytes_and_classification(server, client):
    given = triton.InferInput("encoded", [2], "BYTES")
    given.set_data_from_numpy(np.array([image_file(0), image_file(1)], dtype=object))
    outputs = [triton.InferRequestedOutput("probabilities", class_count=2)]
    best = client.infer("digits", [given], outputs=outputs).as_numpy("probabilities")
    _, labels = expected(server, 2)
    assert best.shape == (2, 2)
    assert [text.split(b":")[2] for text in best[:, 0]] == labels


def body(**changes):
    tensor = {"name": "raw", "datatype": "UINT8", "shape": [1, 8, 8], "data": [0] * 64}
    return {"inputs": [tensor | changes]}


def test_plain_json_nested_or_flat_and_base64(server, http):
    nested = http.post(INFER, json=body(data=np.zeros((1, 8, 8), int).tolist())).json()
    flat = http.post("/v2/models/digits/versions/1/infer", json=body()).json()
    assert nested == flat
    text = base64.b64encode(image_file(0)).decode()
    given = body(name="encoded", datatype="BYTES", shape=[1], data=[text], parameters={"content_type": "base64"})
    answer = http.post(INFER, json=given).json()
    assert answer["outputs"][1]["data"] == [expected(server, 1)[1][0].decode()]


@pytest.mark.parametrize(
    ("content", "status", "message"),
    [
        (b"", 400, "the body is not JSON"),
        (b"hello", 400, "the body is not JSON"),
        (b"[" * 100_000, 400, "the body is not JSON"),
        (b"[]", 400, "the body: Input should be"),
        (b"{}", 400, "inputs: Field required"),
        ({"inputs": []}, 400, "a request has one input"),
        ({"inputs": [{}]}, 400, "inputs.0.name: Field required"),
        (body(name="x"), 400, "input 'x' is unknown"),
        (body(datatype="FP32", data=[float("nan")] * 64), 400, "and nan at [0, 0, 0] is no UINT8"),
        (body(datatype="FP32", data=[0] * 63 + [1e39]), 400, "FP32 goes from"),
        (body(more=1), 400, "inputs.0.more: it is no part of a request; leave it out"),
        (body(parameters={"shared_memory_offset": 0}), 400, "inputs.0: parameter 'shared_memory_offset' is unknown"),
        (body() | {"model_name": "trees"}, 400, "the body is for 'trees', and the address for 'digits'"),
        (body() | {"outputs": [{"name": "label", "parameters": {"k": 2}}]}, 400, "parameter 'k' is unknown: known"),
        (body(datatype="UINT9"), 400, "datatype 'UINT9' is unknown"),
        (body(shape=[1, 8]), 400, "shape [1, 8] has 8 elements, the data 64"),
        (body(shape=[64]), 400, "has shape [64]; the model expects [-1, 8, 8]"),
        (body(shape=[-1, 8, 8]), 400, "inputs.0.shape.0"),
        (body(shape=[0, 8, 8], data=[]), 400, "the request has no samples"),
        (body(shape=[65, 8, 8], data=[0] * 64 * 65), 413, "has 65 samples; 64 are the limit"),
        (body(data=[300] * 64), 400, "UINT8 goes from 0 to 255; the data do not"),
        (body(data=[0.5] * 64), 400, "the data are not UINT8"),
        (body(data=["0"] * 64), 400, "the data are not UINT8"),
        (body(data=[10**30] * 64), 400, "input 'raw'"),
        (body(data=[[0], [0, 0]]), 400, "not numbers in rows of equal length"),
        (body(data=None), 400, "has neither data nor binary_data_size"),
        (body(parameters={"binary_data_size": 64}), 400, "has 64 bytes of binary data, of which 0 came"),
        (body(name="encoded", datatype="BYTES", shape=[1], data=[7]), 400, "BYTES are texts in JSON, not int"),
        (
            body(name="encoded", datatype="BYTES", shape=[1], data=["?"], parameters={"content_type": "base64"}),
            400,
            "its content_type is base64, its data are not",
        ),
        (body() | {"outputs": [{"name": "x"}]}, 400, "output 'x' is unknown"),
        (body() | {"parameters": {"timeout": -1}}, 400, "parameters.timeout"),
    ],
)
def test_wrong_requests_get_a_status_and_a_sentence(server, http, content, status, message):
    content = content if isinstance(content, bytes) else json.dumps(content).encode()
    answer = http.post(INFER, content=content)
    assert (answer.status_code, message in answer.json()["error"]) == (status, True), answer.text
    server.assert_alive()


@pytest.mark.parametrize(
    ("length", "message"), [("9999", "the body has"), ("x", "the body has"), ("2", "the body is not JSON")]
)
def test_a_wrong_length_of_the_json_is_refused(http, length, message):
    answer = http.post(INFER, json=body(), headers={"Inference-Header-Content-Length": length})
    assert (answer.status_code, message in answer.json()["error"]) == (400, True)


def test_unknown_models_versions_and_pages(http):
    for path, status in (("/v2/models/trees/infer", 404), ("/v2/models/digits/versions/2/infer", 404), ("/x", 404)):
        answer = http.post(path, json=body())
        assert answer.status_code == status
        assert "error" in answer.json()
    assert http.get(INFER).status_code == 405


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_recognize_takes_an_image_file(server, http, kind):
    content = image_file(0, kind)
    answer = http.post(
        "/recognize", content=content, headers={"Content-Type": f"image/{kind.lower()}"}, params={"top": 3}
    )
    (prediction,) = server.recognizer.predict([Image.open(io.BytesIO(content))])
    told = answer.json()
    assert answer.status_code == 200
    assert (told["label"], told["version"], told["step"]) == (prediction.label, "1", 7)
    assert told["digest"] == server.recognizer.info.digest
    assert (
        list(told["probabilities"]) == sorted(prediction.probabilities, key=lambda x: -prediction.probabilities[x])[:3]
    )
    assert told["probability"] == pytest.approx(prediction.probability, abs=1e-6)


@pytest.mark.parametrize(
    ("content", "headers", "message"),
    [
        (b"", {}, "the image is empty"),
        (b"no image", {"Content-Type": "image/png"}, "is not an image that can be read"),
        (image_file(0)[:70], {}, "the image"),
        (b"x", {"Content-Type": "multipart/form-data; boundary=x"}, "curl --data-binary @FILE"),
        (b"no gzip", {"Content-Encoding": "gzip"}, "the body is not gzip"),
    ],
)
def test_recognize_says_what_is_wrong_with_a_file(server, http, content, headers, message):
    answer = http.post("/recognize", content=content, headers=headers)
    assert (answer.status_code, message in answer.json()["error"]) == (400, True)
    server.assert_alive()


def test_a_body_of_2_gb_is_refused_before_it_is_sent(server):
    host, _, port = server.rest.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(f"POST /recognize HTTP/1.1\r\nHost: x\r\nContent-Length: {2 << 30}\r\n\r\n".encode())
        answer = connection.recv(4096).decode()
    assert answer.startswith("HTTP/1.1 413")
    server.assert_alive()


def test_a_body_without_end_is_refused_at_the_limit(server, http):
    sent = []

    def chunks():
        for _ in range(1000):
            sent.append(1 << 20)
            yield bytes(1 << 20)

    # The server answers and hangs up; which of both the client sees first depends on how far it is.
    try:
        assert http.post("/recognize", content=chunks()).status_code == 413
    except (httpx.WriteError, httpx.ReadError, httpx.RemoteProtocolError):
        assert len(sent) < 1000
    server.assert_alive()
    assert http.get("/v2/health/ready").status_code == 200


def test_metrics_count_requests_by_outcome(http):
    http.post("/recognize", content=image_file(0))
    http.post("/recognize", content=b"")
    text = http.get("/metrics").text
    for line in (
        'edgenewton_requests_total{api="recognize",outcome="answered"}',
        'edgenewton_requests_total{api="recognize",outcome="bad_request"}',
        "edgenewton_batch_samples_bucket",
        "edgenewton_model_version 1.0",
        "edgenewton_model_step 7.0",
        "edgenewton_waiting_samples 0.0",
    ):
        assert line in text


def test_the_page_of_the_api_needs_no_other_server(http):
    page = http.get("/docs").text
    assert "swagger" in page.lower()
    assert "https://" not in page.replace("https://fastapi.tiangolo.com/img/favicon.png", "")
    description = http.get("/openapi.json").json()
    assert {"/recognize", "/v2/models/{model}/infer", "/metrics"} <= description["paths"].keys()
    assert "image/png" in description["paths"]["/recognize"]["post"]["requestBody"]["content"]
