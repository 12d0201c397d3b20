"""The real tritonclient over gRPC; beside it plain gRPC for what tritonclient never sends."""

import io
import subprocess
import sys

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc
from tritonclient.utils import InferenceServerException

from edge_client.tasks.digits import DigitsTask

TASK = DigitsTask()


@pytest.fixture(scope="module")
def client(server):
    with triton.InferenceServerClient(server.grpc) as client:
        yield client


@pytest.fixture(scope="module")
def stub(server):
    with grpc.insecure_channel(server.grpc) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


def pixels(count):
    return np.stack([np.asarray(TASK.sample_image(index)) for index in range(count)])


def png(index):
    file = io.BytesIO()
    TASK.sample_image(index).save(file, "PNG")
    return file.getvalue()


def tensor(name, datatype, array, shape=None):
    made = triton.InferInput(name, array.shape if shape is None else shape, datatype)
    made.set_data_from_numpy(array) if shape is None else made._set_raw(array)
    return made


def expected(server, count):
    predictions = server.recognizer.predict([TASK.sample_image(index) for index in range(count)])
    return (
        np.array([list(p.probabilities.values()) for p in predictions], np.float32),
        [p.label.encode() for p in predictions],
    )


def test_readiness_and_metadata(server, client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("digits")
    assert client.is_model_ready("digits", "1")
    assert not client.is_model_ready("digits", "2")
    assert not client.is_model_ready("trees")
    assert client.get_server_metadata(as_json=True)["name"] == "edgenewton"
    assert client.get_model_metadata("digits", as_json=True) == {
        "name": "digits",
        "versions": ["1"],
        "platform": "edgenewton_torch",
        "inputs": [
            {"name": "raw", "datatype": "UINT8", "shape": ["-1", "8", "8"]},
            {"name": "encoded", "datatype": "BYTES", "shape": ["-1"]},
        ],
        "outputs": [
            {"name": "probabilities", "datatype": "FP32", "shape": ["-1", "10"]},
            {"name": "label", "datatype": "BYTES", "shape": ["-1"]},
        ],
    }


@pytest.mark.parametrize("count", [1, 5])
def test_answers_are_those_of_the_recognizer(server, client, count):
    probabilities, labels = expected(server, count)
    files = np.array([png(index) for index in range(count)], dtype=object)
    for given in (tensor("raw", "UINT8", pixels(count)), tensor("encoded", "BYTES", files)):
        result = client.infer("digits", [given], request_id="seven")
        assert result.as_numpy("label").tolist() == labels
        np.testing.assert_allclose(result.as_numpy("probabilities"), probabilities, atol=1e-6)
        assert (result.get_response().id, result.get_response().model_version) == ("seven", "1")


def test_outputs_that_are_asked_for(server, client):
    probabilities, _ = expected(server, 2)
    outputs = [triton.InferRequestedOutput("probabilities", class_count=3)]
    result = client.infer("digits", [tensor("raw", "UINT8", pixels(2))], outputs=outputs)
    best = [text.decode().split(":") for text in result.as_numpy("probabilities")[0]]
    assert [int(index) for _, index, _ in best] == np.argsort(-probabilities[0])[:3].tolist()
    assert [label for _, _, label in best] == [TASK.labels[int(index)] for _, index, _ in best]
    assert result.as_numpy("label") is None


def test_typed_contents_are_as_good_as_raw_ones(server, stub):
    request = pb.ModelInferRequest(model_name="digits")
    given = request.inputs.add(name="raw", datatype="UINT8", shape=[1, 8, 8])
    given.contents.uint_contents.extend(pixels(1).ravel().tolist())
    response = stub.ModelInfer(request, timeout=10)
    probabilities, labels = expected(server, 1)
    assert not response.raw_output_contents
    np.testing.assert_allclose(response.outputs[0].contents.fp32_contents, probabilities[0], atol=1e-6)
    assert list(response.outputs[1].contents.bytes_contents) == labels


ONE = pixels(1)


@pytest.mark.parametrize(
    ("given", "code", "message"),
    [
        (tensor("raw", "FP32", ONE + np.float32(0.5)), "INVALID_ARGUMENT", "and 0.5 at [0, 0, 0] is no UINT8"),
        (tensor("raw", "INT64", ONE - np.int64(1)), "INVALID_ARGUMENT", "and -1 at [0, 0, 0] is no UINT8"),
        (tensor("raw", "BOOL", ONE > 0), "INVALID_ARGUMENT", "is BOOL; the model expects UINT8"),
        (tensor("raw", "UINT8", ONE[0]), "INVALID_ARGUMENT", r"has shape [8, 8]; the model expects [-1, 8, 8]"),
        (tensor("raw", "UINT8", ONE[:, :7]), "INVALID_ARGUMENT", r"has shape [1, 7, 8]"),
        (tensor("raw", "UINT8", ONE[:0]), "INVALID_ARGUMENT", "the request has no samples"),
        (tensor("raw", "UINT8", np.repeat(ONE, 65, 0)), "INVALID_ARGUMENT", "has 65 samples; 64 are the limit"),
        (tensor("pixels", "UINT8", ONE), "INVALID_ARGUMENT", "input 'pixels' is unknown; known are 'raw', 'encoded'"),
        (tensor("encoded", "BYTES", np.array([b"x"], object)), "INVALID_ARGUMENT", "the image is not an image"),
        (tensor("encoded", "BYTES", np.array([b""], object)), "INVALID_ARGUMENT", "the image is empty"),
        (tensor("encoded", "BYTES", np.array([png(0)[:70]], object)), "INVALID_ARGUMENT", "the image"),
        (tensor("encoded", "UINT8", ONE), "INVALID_ARGUMENT", "is UINT8; the model expects BYTES"),
    ],
)
def test_wrong_inputs_get_a_code_and_a_sentence(server, client, given, code, message):
    with pytest.raises(InferenceServerException) as caught:
        client.infer("digits", [given])
    assert caught.value.status() == f"StatusCode.{code}"
    assert message in caught.value.message()
    server.assert_alive()


def test_wrong_names_versions_and_outputs(server, client):
    given = tensor("raw", "UINT8", ONE)
    for arguments, code, message in (
        ({"model_name": "trees"}, "NOT_FOUND", "model 'trees' is unknown; this device serves 'digits'"),
        ({"model_version": "9"}, "NOT_FOUND", "version '9' of 'digits' does not serve; version 1 does"),
        ({"outputs": [triton.InferRequestedOutput("x")]}, "INVALID_ARGUMENT", "output 'x' is unknown"),
        ({"inputs": [given, given]}, "INVALID_ARGUMENT", "a request has one input"),
        ({"inputs": []}, "INVALID_ARGUMENT", "this one has none"),
    ):
        with pytest.raises(InferenceServerException) as caught:
            client.infer(**({"model_name": "digits", "inputs": [given]} | arguments))
        assert caught.value.status() == f"StatusCode.{code}"
        assert message in caught.value.message()
    with pytest.raises(InferenceServerException, match="is unknown"):
        client.get_model_metadata("trees")


def request_of(**tensor):
    request = pb.ModelInferRequest(model_name="digits")
    contents = tensor.pop("contents", {})
    request.inputs.add(**({"name": "raw", "datatype": "UINT8", "shape": [1, 8, 8]} | tensor))
    for field, values in contents.items():
        getattr(request.inputs[0].contents, field).extend(values)
    return request


@pytest.mark.parametrize(
    ("request_", "raws", "message"),
    [
        (request_of(), [b"x"], "UINT8 of shape [1, 8, 8] is 64 bytes, not 1"),
        (request_of(), [bytes(64)] * 2, "1 inputs and 2 raw contents"),
        (request_of(datatype="COMPLEX"), [bytes(64)], "datatype 'COMPLEX' is unknown"),
        (request_of(shape=[-1, 8, 8]), [bytes(64)], "has a negative dimension"),
        (request_of(shape=[1 << 62, 8, 8]), [bytes(64)], "bytes, not 64"),
        (request_of(name="encoded", datatype="BYTES", shape=[1]), [b"\xff\0\0\0x"], "the BYTES end within an element"),
        (request_of(name="encoded", datatype="BYTES", shape=[1]), [b"\0"], "the BYTES end within an element"),
        (
            request_of(name="encoded", datatype="BYTES", shape=[2]),
            [b"\1\0\0\0x"],
            "has 2 elements of BYTES, the data 1",
        ),
        (request_of(), [], "shape [1, 8, 8] has 64 elements, the data 0"),
        (request_of(contents={"int_contents": [0] * 64}), [], "UINT8 goes into uint_contents, not int_contents"),
        (request_of(contents={"uint_contents": [256] * 64}), [], "UINT8 goes from 0 to 255; the data do not"),
        (request_of(datatype="FP16"), [], "shape [1, 8, 8] has 64 elements"),
        (request_of(datatype="BYTES", contents={"bytes_contents": [b""]}), [], "64 elements of BYTES, the data 1"),
    ],
)
def test_malformed_messages_get_a_code_and_a_sentence(server, stub, request_, raws, message):
    request_.raw_input_contents.extend(raws)
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(request_, timeout=10)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert message in caught.value.details()
    server.assert_alive()


def test_a_message_beyond_the_limit_is_refused(server, stub):
    request = request_of()
    request.raw_input_contents.append(bytes(17 << 20))
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(request, timeout=30)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    server.assert_alive()


def test_deadlines(client, stub):
    client.infer("digits", [tensor("raw", "UINT8", ONE)], timeout=5_000_000)
    request = request_of()
    request.raw_input_contents.append(bytes(64))
    for timeout_us, code in ((0, grpc.StatusCode.INVALID_ARGUMENT), (1, grpc.StatusCode.DEADLINE_EXCEEDED)):
        request.parameters["timeout"].int64_param = timeout_us
        with pytest.raises(grpc.RpcError) as caught:
            stub.ModelInfer(request, timeout=10)
        assert caught.value.code() is code
    request.parameters["timeout"].string_param = "soon"
    with pytest.raises(grpc.RpcError, match="parameter 'timeout' must be an integer"):
        stub.ModelInfer(request, timeout=10)


def test_the_standard_health_service_answers(server):
    with grpc.insecure_channel(server.grpc) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for name in ("", "inference.GRPCInferenceService"):
            reply = stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=10)
            assert reply.status == health_pb2.HealthCheckResponse.SERVING


COMPARE = """
import sys
if sys.argv[1] == "ours":
    from edgenewton.inference.open_inference_pb2 import DESCRIPTOR
    files = [DESCRIPTOR]
else:
    from tritonclient.grpc import model_config_pb2, service_pb2
    files = [model_config_pb2.DESCRIPTOR, service_pb2.DESCRIPTOR]
def describe(message):
    for field in message.fields:
        yield f"{message.full_name}.{field.name} {field.number} {field.type} {field.is_repeated}"
    for nested in message.nested_types:
        yield from describe(nested)
for file in files:
    for name, message in sorted(file.message_types_by_name.items()):
        print("\\n".join(describe(message)))
    for name, kind in sorted(file.enum_types_by_name.items()):
        print("\\n".join(f"{name}.{value.name} {value.number}" for value in kind.values))
"""


def test_our_messages_have_the_numbers_of_the_protocol():
    ours, theirs = (
        subprocess.run([sys.executable, "-c", COMPARE, whose], capture_output=True, text=True, check=True, timeout=60)
        for whose in ("ours", "theirs")
    )
    lines = {line for line in ours.stdout.splitlines() if line}
    assert len(lines) > 120
    assert lines <= set(theirs.stdout.splitlines())
