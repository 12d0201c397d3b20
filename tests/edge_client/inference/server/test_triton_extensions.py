"""What Triton's clients know beside inference: the repository, configuration, statistics, streams, compression."""

import queue

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.grpc as over_grpc
import tritonclient.http as over_http
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc
from tritonclient.utils import InferenceServerException

from edge_client.tasks.digits import DigitsTask

TASK = DigitsTask()
PIXELS = np.stack([np.asarray(TASK.sample_image(index)) for index in range(3)])


@pytest.fixture(scope="module")
def clients(server):
    with over_grpc.InferenceServerClient(server.grpc) as first, over_http.InferenceServerClient(server.rest) as second:
        yield {"grpc": first, "http": second}


@pytest.fixture(params=["grpc", "http"])
def client(request, clients):
    return clients[request.param]


def infer(client, model, pixels=PIXELS, datatype="UINT8", **more):
    module = over_grpc if isinstance(client, over_grpc.InferenceServerClient) else over_http
    tensor = module.InferInput("raw", pixels.shape, datatype)
    tensor.set_data_from_numpy(pixels)
    return client.infer(model, [tensor], **more)


def described(client, call, *arguments):
    if isinstance(client, over_grpc.InferenceServerClient):
        return getattr(client, call)(*arguments, as_json=True)
    return getattr(client, call)(*arguments)


def index(client):
    told = described(client, "get_model_repository_index")
    entries = told["models"] if isinstance(told, dict) else told
    return {entry["name"]: (entry["version"], entry["state"], entry.get("reason", "")) for entry in entries}


def test_a_model_of_the_repository_is_loaded_answers_and_is_unloaded(client):
    before = index(client)
    assert before["digits"] == ("1", "READY", "")
    assert before["seven"][:2] == ("7", "UNAVAILABLE")
    with pytest.raises(InferenceServerException, match="model 'seven' is unknown"):
        infer(client, "seven")
    client.load_model("seven")
    assert index(client)["seven"] == ("7", "READY", "")
    assert client.is_model_ready("seven", "7")
    result = infer(client, "seven")
    assert result.as_numpy("label").shape == (3,)
    client.unload_model("seven", unload_dependents=True)
    assert index(client)["seven"] == ("7", "UNAVAILABLE", "unloaded")
    assert not client.is_model_ready("seven")


def test_what_cannot_be_loaded_says_why_and_changes_nothing(client):
    for model, message in (
        ("damaged", "version 1 cannot be loaded: model 'damaged' is not a model"),
        ("nowhere", "model 'nowhere' is not in the repository"),
        ("../repository/flat", "Not Found|is not in the repository"),
        ("digits", "model 'digits' is the one that the operator lets serve"),
    ):
        with pytest.raises(InferenceServerException, match=message):
            client.load_model(model)
    with pytest.raises(InferenceServerException, match="parameter 'config' is refused"):
        client.load_model("flat", config="{}")
    with pytest.raises(InferenceServerException, match="is refused"):
        client.load_model("flat", config="{}", files={"file:1/model.pt": b"weights of a stranger"})
    with pytest.raises(InferenceServerException, match="model 'digits' is the one that the operator lets serve"):
        client.unload_model("digits")
    assert "damaged' is not a model" in index(client)["damaged"][2]
    assert index(client)["flat"] == ("1", "UNAVAILABLE", "not loaded")
    assert infer(client, "digits").as_numpy("label").shape == (3,)


def test_the_configuration_is_tritons(client):
    config = described(client, "get_model_config", "digits")
    config = config.get("config", config)
    assert (config["name"], config["max_batch_size"], config["platform"]) == ("digits", 64, "edgenewton_torch")
    inputs = {
        tensor["name"]: (tensor["data_type"], [int(size) for size in tensor["dims"]]) for tensor in config["input"]
    }
    assert inputs == {"raw": ("TYPE_UINT8", [8, 8]), "encoded": ("TYPE_STRING", [1])}
    outputs = {tensor["name"]: tensor["data_type"] for tensor in config["output"]}
    assert outputs == {"probabilities": "TYPE_FP32", "label": "TYPE_STRING"}
    assert config["parameters"]["step"]["string_value"] == "7"


def statistics(client):
    (entry,) = described(client, "get_inference_statistics", "digits", "1")["model_stats"]
    return entry


def count(duration):
    return int(duration.get("count", 0))


def test_statistics_count_requests_and_samples(client):
    before = statistics(client)
    for _ in range(4):
        infer(client, "digits")
    with pytest.raises(InferenceServerException):
        infer(client, "digits", PIXELS[:, :7])
    after = statistics(client)
    assert int(after["inference_count"]) - int(before.get("inference_count", 0)) == 12
    runs = int(after["execution_count"]) - int(before.get("execution_count", 0))
    assert runs == 4
    for kind, more in (
        ("success", 4),
        ("fail", 1),
        ("queue", 4),
        ("compute_input", 4),
        ("compute_infer", 4),
        ("compute_output", 4),
    ):
        now, then = after["inference_stats"][kind], before["inference_stats"][kind]
        assert count(now) - count(then) == more, kind
        assert int(now["ns"]) > int(then.get("ns", 0)), kind
    (batch,) = [batch for batch in after["batch_stats"] if int(batch["batch_size"]) == 3]
    assert count(batch["compute_infer"]) >= 4
    assert int(after["last_inference"]) > 1_700_000_000_000
    names = {entry["name"] for entry in described(client, "get_inference_statistics")["model_stats"]}
    assert "digits" in names
    with pytest.raises(InferenceServerException, match="no statistics of version '9'"):
        described(client, "get_inference_statistics", "digits", "9")


def test_numbers_of_other_types_are_taken_where_they_are_the_same(client):
    plain = infer(client, "digits").as_numpy("probabilities")
    for datatype, kind in (("FP32", np.float32), ("INT64", np.int64), ("FP64", np.float64), ("UINT16", np.uint16)):
        np.testing.assert_array_equal(
            infer(client, "digits", PIXELS.astype(kind), datatype).as_numpy("probabilities"), plain
        )


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"priority": 2}, "parameter 'priority' is 2"),
        ({"sequence_id": 7, "sequence_start": True}, "parameter 'sequence_id' is '7'"),
        ({"sequence_id": "talk", "sequence_end": True}, "parameter 'sequence_id' is 'talk'"),
        ({"parameters": {"temperature": 1}}, "parameter 'temperature' is unknown: known are"),
    ],
)
def test_what_is_asked_for_is_never_ignored(client, asked, message):
    with pytest.raises(InferenceServerException, match=message):
        infer(client, "digits", **asked)
    module = over_grpc if isinstance(client, over_grpc.InferenceServerClient) else over_http
    with pytest.raises(InferenceServerException, match="output 'label' has no classes"):
        infer(client, "digits", outputs=[module.InferRequestedOutput("label", class_count=2)])


def test_shared_memory_is_refused(client):
    module = over_grpc if isinstance(client, over_grpc.InferenceServerClient) else over_http
    tensor = module.InferInput("raw", [1, 8, 8], "UINT8")
    tensor.set_shared_memory("region", 64)
    with pytest.raises(InferenceServerException, match="parameter 'shared_memory_\\w+' is unknown: there is no shared"):
        client.infer("digits", [tensor])


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_bodies_are_compressed_both_ways(clients, coding):
    many = np.repeat(PIXELS, 20, axis=0)
    plain = infer(clients["http"], "digits", many)
    packed = infer(
        clients["http"], "digits", many, request_compression_algorithm=coding, response_compression_algorithm=coding
    )
    np.testing.assert_array_equal(packed.as_numpy("probabilities"), plain.as_numpy("probabilities"))
    np.testing.assert_array_equal(packed.as_numpy("label"), plain.as_numpy("label"))
    over_the_wire = infer(clients["grpc"], "digits", many, compression_algorithm=coding)
    np.testing.assert_array_equal(over_the_wire.as_numpy("probabilities"), plain.as_numpy("probabilities"))


def test_a_stream_answers_in_order_and_goes_on_behind_an_error(server):
    answers = queue.Queue()
    with over_grpc.InferenceServerClient(server.grpc) as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        for number in range(20):
            pixels = PIXELS[:1, : 7 if number == 5 else 8]
            tensor = over_grpc.InferInput("raw", pixels.shape, "UINT8")
            tensor.set_data_from_numpy(pixels)
            client.async_stream_infer("digits", [tensor], request_id=str(number), enable_empty_final_response=True)
        told = [answers.get(timeout=60) for _ in range(20)]
        client.stop_stream()
    for number, (result, error) in enumerate(told):
        if number == 5:
            assert "has shape [1, 7, 8]" in error.message()
        else:
            response = result.get_response()
            assert response.id == str(number)
            assert response.parameters["triton_final_response"].bool_param
            assert result.as_numpy("label").shape == (1,)


def test_streams_of_one_client_have_a_limit_and_free_their_places(server):
    with grpc.insecure_channel(server.grpc) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        request = pb.ModelInferRequest(model_name="digits", raw_input_contents=[bytes(64)])
        request.inputs.add(name="raw", datatype="UINT8", shape=[1, 8, 8])
        sent = [queue.Queue() for _ in range(17)]
        calls = [stub.ModelStreamInfer(iter(requests.get, None), timeout=60) for requests in sent[:16]]
        for requests, call in zip(sent, calls, strict=False):
            requests.put(request)
            assert next(call).error_message == ""
        one_more = stub.ModelStreamInfer(iter(sent[16].get, None), timeout=60)
        with pytest.raises(grpc.RpcError) as caught:
            next(one_more)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        sent[16].put(None)
        for requests, call in zip(sent, calls, strict=False):
            requests.put(None)
            assert list(call) == []
        again = stub.ModelStreamInfer(iter([request]), timeout=60)
        assert [answer.error_message for answer in again] == [""]


def test_small_calls_refuse_large_messages_unread(server):
    with grpc.insecure_channel(server.grpc) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        request = pb.RepositoryModelLoadRequest(model_name="flat")
        for place in range(20_000):
            request.parameters[f"p{place}"].bool_param = True
        with pytest.raises(grpc.RpcError) as caught:
            stub.RepositoryModelLoad(request, timeout=60)
        assert "65536 are the limit" in caught.value.details()
        with pytest.raises(grpc.RpcError, match="repository 'mine' is unknown"):
            stub.RepositoryIndex(pb.RepositoryIndexRequest(repository_name="mine"), timeout=60)
        ready = stub.RepositoryIndex(pb.RepositoryIndexRequest(ready=True), timeout=60)
        assert [entry.name for entry in ready.models] == ["digits"]


def test_version_one_of_kserves_protocol(server):
    with httpx.Client(base_url=f"http://{server.rest}", timeout=60) as http:
        assert http.get("/").json()["status"] == "alive"
        assert http.get("/v2/models").json() == http.get("/v1/models").json() == {"models": ["digits"]}
        assert http.get("/v1/models/digits").json() == {"name": "digits", "ready": True}
        assert http.get("/v1/models/trees").status_code == 404
        expected = server.recognizer.predict([TASK.sample_image(0)])[0]
        for instance in (PIXELS[0].tolist(), PIXELS[0].astype(float).tolist(), {"raw": PIXELS[0].tolist()}):
            (told,) = http.post("/v1/models/digits:predict", json={"instances": [instance]}).json()["predictions"]
            assert told["label"] == expected.label
            assert told["probabilities"] == pytest.approx(list(expected.probabilities.values()), abs=1e-6)
        for instances, message in (
            ([[0.5] * 8] * 8, "has shape [8, 8]"),
            ([[[0.5] * 8] * 8], "0.5 at [0, 0, 0] is no UINT8"),
            ([{"b64": "!"}], "instance 0 is not base64"),
            ([{"b64": "aGFsbG8="}], "is not an image"),
            ([{"file": "x"}], "an instance has 'file'"),
            ([PIXELS[0].tolist(), "text"], "of several kinds"),
            ([], "at least 1"),
        ):
            answer = http.post("/v1/models/digits:predict", json={"instances": instances})
            assert (answer.status_code, message in answer.json()["error"]) == (400, True), answer.text
        assert http.post("/v1/models/trees:predict", json={"instances": [1]}).status_code == 404
