"""Requests that are made to hurt: each is refused with a sentence, and the server answers others as before.

REST's server runs in this process, on an event loop in a thread; gRPC's is a process, for its messages would meet
tritonclient's here. The requests come over real connections.
"""

import gc
import gzip
import json
import socket
import threading
import time
import tracemalloc
import zlib

import grpc
import httpx
import pytest
from edgenewton.common.http_server import HttpServer
from edgenewton.common.loop_thread import LoopThread

from edge_client.inference import Artefact, Recognizer
from edge_client.inference.errors import BadRequestError, OverloadedError, TooLargeError
from edge_client.inference.server.compression import accepted_coding, pack, unpack
from edge_client.inference.server.memory import MemoryBudget
from edge_client.inference.server.protocol import RequestedOutput
from edge_client.inference.server.rest_server import make_app
from edge_client.inference.server.service import InferenceService, RequestLimits
from edge_client.inference.server.sizes import answer_bytes, json_bytes, message_bytes
from edge_client.tasks.digits import DigitsTask

INFER = "/v2/models/digits/infer"
METHOD = "/inference.GRPCInferenceService/ModelInfer"
HUGE = 10**400


class Served:
    """A server in a thread."""

    def __init__(self, **limits):
        self.loop = LoopThread("served")
        task = DigitsTask()
        self.recognizer = Recognizer.of(Artefact.of(task, "digits", task.model(), 7))
        self.loop.call(self._start(RequestLimits(**limits)), 60)
        self.http = httpx.Client(base_url=self.server.url, timeout=60)

    async def _start(self, limits):
        self.service = InferenceService("digits", limits)
        await self.service.swap(self.recognizer, 1)
        self.server = HttpServer(make_app(self.service), "127.0.0.1", 0, purpose="REST")
        await self.server.start()

    async def _stop(self):
        await self.service.stop(5)
        await self.server.stop()

    def infer(self, content, **headers):
        answer = self.http.post(INFER, content=content, headers=headers)
        return answer.status_code, answer.json()

    def stop(self):
        self.http.close()
        self.loop.call(self._stop(), 60)
        self.loop.stop()


@pytest.fixture(scope="module")
def served():
    served = Served()
    yield served
    assert served.service.memory.taken == 0  # whatever was refused, nothing is counted for ever
    served.stop()


def request_text(samples=1, outputs=None, **more):
    tensor = {"name": "raw", "datatype": "UINT8", "shape": [samples, 8, 8], "data": [0] * 64 * samples}
    return json.dumps({"inputs": [tensor], **({"outputs": outputs} if outputs else {}), **more}).encode()


def assert_answers(served):
    status, told = served.infer(request_text(outputs=[{"name": "label"}, {"name": "probabilities"}]))
    assert (status, [output["name"] for output in told["outputs"]]) == (200, ["label", "probabilities"])


def test_an_output_is_asked_for_once(served):
    for repeated in ({"name": "label"}, {"name": "probabilities", "parameters": {"classification": 2}}):
        status, told = served.infer(request_text(outputs=[repeated, repeated]))
        assert (status, told["error"]) == (
            400,
            f"output '{repeated['name']}' is asked for more than once; name it once",
        )
    status, told = served.infer(request_text(64, [{"name": "probabilities"}] * 5000))
    assert (status, "outputs: List should have at most 8 items" in told["error"]) == (400, True)
    assert_answers(served)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"parameters": {"timeout": HUGE}}, "parameters.timeout"),
        ({"outputs": [{"name": "probabilities", "parameters": {"classification": HUGE}}]}, "classification"),
        ({"inputs": [{"name": "raw", "datatype": "UINT8", "shape": [HUGE], "data": [0]}]}, "inputs.0.shape.0"),
        ({"inputs": [{"name": "raw", "datatype": "UINT8", "shape": [1] * 1000, "data": [0]}]}, "inputs.0.shape"),
        ({"inputs": [{"name": "x" * 10_000, "datatype": "UINT8", "shape": [1], "data": [0]}]}, "inputs.0.name"),
        ({"inputs": [{}] * 200_000}, "inputs"),
        ({"id": "x" * 10_000}, "id"),
    ],
)
def test_fields_have_limits(served, changes, field):
    status, told = served.infer(json.dumps(json.loads(request_text()) | changes).encode())
    assert (status, field in told["error"]) == (400, True)
    assert len(told["error"]) <= 1000
    assert_answers(served)


def test_headers_of_many_digits_are_bad_requests(served):
    status, told = served.infer(request_text(), **{"Inference-Header-Content-Length": "9" * 5000})
    assert (status, "the body has" in told["error"]) == (400, True)
    with socket.create_connection(("127.0.0.1", served.server.port), timeout=20) as connection:
        connection.sendall(b"POST /recognize HTTP/1.1\r\nHost: x\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 400")
    for query in (f"top={'9' * 5000}", f"timeout_s={'9' * 5000}", "timeout_s=nan", "timeout_s=1e999"):
        assert served.http.post(f"/recognize?{query}", content=b"x").status_code in (400, 422)


@pytest.mark.parametrize(
    "piece", [b"300,", b"0,", b"0.5,", b"[],", b"[0],", b"{},", b'{"":0},', b'{"a":0,"b":1},', b'"ab",', b"1e9,"]
)
def test_what_json_takes_is_never_more_than_was_counted(piece):
    from pydantic_core import from_json

    body = b"[" + piece * (200_000 // len(piece)) + b"0]"
    gc.collect()
    tracemalloc.start()
    try:
        parsed = from_json(body)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert parsed
    assert peak <= json_bytes(body, len(body)) <= 200 * len(body)


def test_memory_is_bounded_for_each_request_and_its_client():
    budget = MemoryBudget(1000)
    with budget.request("10.0.0.1") as one, budget.request("10.0.0.1") as two, budget.request("10.0.0.2") as other:
        with pytest.raises(TooLargeError, match="a thing needs"):
            one.take(501, "a thing")
        one.take(300, "a thing")
        with pytest.raises(OverloadedError, match="no memory left for a thing"):
            two.take(201, "a thing")
        two.take(200, "a thing")
        other.take(500, "a thing")
        with budget.request("10.0.0.3") as late, pytest.raises(OverloadedError):
            late.take(1, "a thing")
        assert budget.taken == 1000
    assert budget.taken == 0


def test_an_answer_is_counted_before_it_is_computed():
    outputs = (RequestedOutput("probabilities"), RequestedOutput("label"))
    assert answer_bytes(outputs, 64, ["x"] * 50_000, "probabilities") > 64 * 50_000 * 100
    assert answer_bytes((RequestedOutput("probabilities", 3),), 64, ["x"] * 50_000, "probabilities") < 64 * 3 * 300


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (INFER, '{"inputs": [{"name": "raw", "datatype": "UINT8", "shape": [1, 8, 8], "data": %s}]}'),
        ("/v1/models/digits:predict", '{"instances": %s}'),
        ("/v1/models/digits:predict", '{"instances": [{"raw": %s}]}'),
    ],
)
def test_a_long_text_among_numbers_takes_its_place_alone(served, path, body):
    """Each was as long in memory as the longest: 40 kB became 400 MB, 1 MB more than any machine has."""
    content = body % json.dumps([["x" * 20_000, *[""] * 5_000]])
    gc.collect()
    tracemalloc.start()
    try:
        answer = served.http.post(path, content=content)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (answer.status_code, " are not " in answer.json()["error"]) == (400, True)
    assert peak < 20 << 20
    assert_answers(served)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (INFER, "%s"),
        (INFER, '{"inputs": [], "parameters": %s}'),
        (INFER, '{"inputs": [{"name": "raw", "parameters": %s}]}'),
        ("/v1/models/digits:predict", "%s"),
    ],
)
def test_an_object_of_too_many_names_is_refused_before_each_is_explained(served, path, body):
    """Each cost a kilobyte: 16 MB became 1.2 GB, and nobody was answered for seconds."""
    content = body % json.dumps({f"name{place}": 0 for place in range(20_000)})
    gc.collect()
    tracemalloc.start()
    try:
        answer = served.http.post(path, content=content)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (answer.status_code, answer.json()["error"]) == (
        400,
        "an object of the request has 20000 names; at most 64 are read",
    )
    assert peak < json_bytes(content.encode(), len(content)) + (8 << 20)
    assert_answers(served)


def test_too_much_json_is_refused_and_health_goes_on_meanwhile(served):
    """Each was 16 MB once: 5 GB of errors, of lists, or of answers, and no sign of life for minutes."""
    bodies = [
        b'{"inputs": [' + b'{"":0},' * 1_000_000 + b"{}]}",
        b'{"inputs": [{"name": "raw", "datatype": "UINT8", "shape": [1,8,8], "data": ['
        + b"[]," * 2_000_000
        + b"[]]}]}",
    ]
    statuses = []
    thread = threading.Thread(target=lambda: statuses.extend(served.infer(body) for body in bodies))
    thread.start()
    with httpx.Client(base_url=served.server.url, timeout=60) as http:
        while thread.is_alive():
            assert http.get("/v2/health/live").status_code == 200
    thread.join()
    for status, told in statuses:
        assert (status, "MB of memory" in told["error"]) == (413, True), told
    assert_answers(served)


def test_a_client_that_has_taken_its_memory_is_told_to_wait():
    served = Served(max_request_bytes=1 << 20, max_memory_bytes=4 << 20)
    try:
        held = socket.create_connection(("127.0.0.1", served.server.port), timeout=20)
        head = b"POST /recognize HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n"
        held.sendall(head + bytes(999_000))
        while served.service.memory.taken < 1_990_000:
            time.sleep(0.01)
        answer = served.http.post("/recognize", content=bytes(200_000))
        assert (answer.status_code, answer.headers["Retry-After"]) == (429, "1")
        assert "there is no memory left for the request's body" in answer.json()["error"]
        held.close()
        while served.service.memory.taken:
            time.sleep(0.01)
        assert_answers(served)
    finally:
        served.stop()


# ---------------------------------------------------------------------- gRPC, from its bytes


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_a_body_that_unpacks_to_too_much_is_refused_at_the_limit(served, coding):
    packer = zlib.compressobj(1, wbits=31 if coding == "gzip" else 15)
    bomb = b"".join([packer.compress(bytes(1 << 20)) for _ in range(100)]) + packer.flush()
    assert len(bomb) < 1 << 20
    tracemalloc.start()
    try:
        status, told = served.infer(bomb, **{"Content-Encoding": coding})
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (status, "unpacks to more than 16777216 bytes" in told["error"]) == (413, True), told
    assert peak < 24 << 20
    assert_answers(served)


def test_memory_is_counted_while_a_body_unpacks():
    served = Served(max_memory_bytes=8 << 20)
    packed = gzip.compress(bytes(6 << 20))
    status, told = served.infer(packed, **{"Content-Encoding": "gzip"})
    assert (status, "the request's unpacked body needs" in told["error"]) == (413, True), told
    assert served.service.memory.taken == 0
    served.stop()


@pytest.mark.parametrize(
    ("change", "headers", "message"),
    [
        (lambda packed: packed[:-9], {"Content-Encoding": "gzip"}, "the body's gzip ends too early"),
        (lambda packed: packed + b"more", {"Content-Encoding": "gzip"}, "goes on behind the end of its gzip"),
        (lambda packed: packed, {"Content-Encoding": "deflate"}, "the body is not deflate"),
        (lambda packed: packed, {"Content-Encoding": "gzip, gzip"}, "'gzip, gzip' is unknown: send it as gzip or"),
        (lambda packed: packed, {"Content-Encoding": "br"}, "'br' is unknown"),
    ],
)
def test_damaged_and_unknown_codings_are_bad_requests(served, change, headers, message):
    status, told = served.infer(change(gzip.compress(request_text())), **headers)
    assert (status, message in told["error"]) == (400, True), told


def test_answers_are_packed_for_who_takes_them_so():
    for accepted, coding in (
        ("gzip", "gzip"),
        ("deflate, gzip;q=0.5", "deflate"),
        ("br, x-gzip", "gzip"),
        ("gzip;q=0", ""),
        ("gzip;q=much", ""),
        ("identity, *", ""),
        ("", ""),
    ):
        assert accepted_coding(accepted) == coding
    for coding in ("gzip", "deflate"):
        assert unpack(pack(b"9" * 70_000, coding), coding, 1 << 20, lambda _: None) == b"9" * 70_000


def test_without_a_repository_no_client_loads_or_unloads(served):
    for action in ("load", "unload"):
        answer = served.http.post(f"/v2/repository/models/digits/{action}")
        assert (answer.status_code, "has named no model repository" in answer.json()["error"]) == (403, True)
    answer = served.http.post("/v2/repository/index", content=b" " * (65 << 10))
    assert answer.status_code == 413
    assert [entry["name"] for entry in served.http.post("/v2/repository/index").json()] == ["digits"]


def field(number, content):
    """Return a field with a length, as protobuf writes it."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def varint(value):
    written = b""
    while value > 127:
        written += bytes([value & 127 | 128])
        value >>= 7
    return written + bytes([value])


def message(outputs=(), samples=1, name=b"raw"):
    tensor = field(1, name) + field(2, b"UINT8") + field(3, varint(samples) + b"\x08\x08")
    asked = b"".join(field(6, field(1, output)) for output in outputs)
    return field(1, b"digits") + field(5, tensor) + asked + field(7, bytes(64 * samples))


@pytest.fixture(scope="module")
def call(server):
    with grpc.insecure_channel(server.grpc) as channel:

        def call(content):
            """Return the code and the sentence of a refusal; ("OK", answer) of none."""
            try:
                return "OK", channel.unary_unary(METHOD)(content, timeout=60)
            except grpc.RpcError as error:
                return error.code().name, error.details()

        yield call


def test_grpc_refuses_repeated_outputs_and_swollen_messages(call):
    assert call(message())[0] == "OK"
    assert call(message([b"label", b"label"])) == (
        "INVALID_ARGUMENT",
        "output 'label' is asked for more than once; name it once",
    )
    code, text = call(message() + field(5, b"") * 100_000)
    assert (code, "more than 64 inputs" in text) == ("INVALID_ARGUMENT", True)
    code, text = call(message() + field(5, field(5, field(3, bytes(10_000_000)))))
    assert (code, "tensors may come as raw_input_contents" in text) == ("INVALID_ARGUMENT", True)
    code, text = call(message(name=b"x" * 100_000))
    assert (code, len(text) <= 1000) == ("INVALID_ARGUMENT", True)
    for damaged in (b"\xff" * 20, b"\xff" * 100_000, message()[:-1], b"\x0a\xff\xff\xff\xff\x7f" + bytes(100_000)):
        assert call(damaged)[0] == "INVALID_ARGUMENT"
    assert call(message([b"label"]))[0] == "OK"


def test_a_message_is_walked_through_without_being_parsed():
    raw = field(7, bytes(1 << 20))
    assert message_bytes(message() + raw) < 4 * len(raw)
    assert message_bytes(field(5, bytes(1 << 20))) > 30 << 20
    with pytest.raises(BadRequestError):
        message_bytes(b"\x0f" + bytes(100_000))
    other_kinds = varint(20 << 3) + varint(1 << 60) + varint(21 << 3 | 1) + bytes(8) + varint(22 << 3 | 5) + bytes(4)
    assert message_bytes(other_kinds + raw) < 4 * len(raw)


def test_metadata_have_a_limit(server):
    with grpc.insecure_channel(server.grpc) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(METHOD)(message(), timeout=20, metadata=[("x", "a" * 100_000)])
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert channel.unary_unary(METHOD)(message(), timeout=20)
