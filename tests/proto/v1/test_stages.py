"""Chains of stages: what they compose, what they remember, and that the bytes on the wire are what they always were."""

import hashlib

import numpy as np
import pytest
from edgenewton.v1 import exchange_pb2 as pb
from edgenewton.v1.codecs import CODEC_NUMBERS, Chain, CodecChoice, Context, Float32Array, Policy, Stage, State
from edgenewton.v1.codecs.plain import Bf16, Fp32, to_bf16
from edgenewton.v1.framing import FramePacker, Layout, SliceWriter, parse_frame
from edgenewton.v1.tensor_spec import TensorSpec

SPECS = (
    TensorSpec("w", (40, 60)),
    TensorSpec("b", (100,), "float64"),
    TensorSpec("p", (300,), kind="parameter"),
    TensorSpec("A", (465,), kind="curvature"),
)
FRAME_BYTES = 4096


def layout_of(name: str) -> Layout:
    return Layout(SPECS, CodecChoice(name, powersgd_rank=2, topk_fraction=0.1).policy(), FRAME_BYTES)


def values(step: int, size: int) -> np.ndarray:
    """Return numbers of many magnitudes, the same on every machine."""
    n = np.arange(size, dtype=np.int64)
    return (((n * 7919 + 104729 * step) % 2003 - 1001) * np.exp2((n * 31 + step) % 23 - 16)).astype(np.float32)


def frames(layout: Layout, writer: SliceWriter, step: int) -> list[bytes]:
    packer = FramePacker(step, 4, FRAME_BYTES)
    sent: list[bytes] = []
    for tensor, spec in enumerate(SPECS):
        flat = values(step + tensor, spec.size)
        for piece in layout.slices(tensor):
            part = flat[piece.key.offset : piece.key.offset + piece.length]
            sent += packer.add(piece, writer.encode(piece, part, step))
    return [*sent, packer.take()]


@pytest.mark.parametrize(
    ("name", "size", "digest"),
    [
        ("fp32", 39556, "bff69703b61af9fad3a7beaf82525e70"),
        ("bf16", 21746, "508e248645bcebab8981d9deb18e471d"),
        ("fp16", 21746, "00c157d06d0d9fb2b6d3e1d837ccb28f"),
        ("int8", 14372, "86c0e0f1808e35a8489c14aece8534b8"),
        ("topk", 11692, "b36e65e0af0f7a293681667b2b05d732"),
    ],
)
def test_the_bytes_of_three_steps_are_those_of_the_first_release(name, size, digest):
    layout = layout_of(name)
    writer = SliceWriter(layout)
    sent = b"".join(frame for step in range(3) for frame in frames(layout, writer, step))
    assert (len(sent), hashlib.sha256(sent).hexdigest()[:32]) == (size, digest)


def test_the_bytes_of_powersgd_are_those_of_its_formula():
    """Not a digest: the last bits of a product and a QR decomposition are the machine's."""
    layout = layout_of("powersgd")
    (piece,), writer = layout.slices(0), SliceWriter(layout)
    Q = np.random.default_rng(0).standard_normal((60, 2), dtype=np.float32)
    error = np.zeros((40, 60), np.float32)
    for step in range(3):
        M = values(step, 2400).reshape(40, 60) + error
        P, _ = np.linalg.qr(M @ Q)
        Q = M.T @ P
        expected = bytes(to_bf16(np.concatenate([P.ravel(), Q.ravel()])))
        assert bytes(writer.encode(piece, values(step, 2400), step)) == expected
        error = M - piece.decode(expected, step).reshape(40, 60)


@pytest.mark.parametrize("name", CODEC_NUMBERS)
def test_a_sender_goes_on_from_what_another_remembered(name):
    layout = layout_of(name)
    writer = SliceWriter(layout)
    for step in range(2):
        frames(layout, writer, step)
    successor = SliceWriter(layout)
    frames(layout, successor, 7)  # is forgotten
    successor.load_state_dict(writer.state_dict())
    assert frames(layout, successor, 2) == frames(layout, writer, 2)
    if writer.state_dict():
        assert frames(layout, SliceWriter(layout), 2) != frames(layout, writer, 2)


def test_only_stages_with_a_memory_have_a_state():
    has_state = set()
    for name in CODEC_NUMBERS:
        writer = SliceWriter(layout_of(name))
        frames(layout_of(name), writer, 0)
        if writer.state_dict():
            assert all(key.tensor == 0 for key in writer.state_dict()), "only the large gradient is compressed"
            has_state.add(name)
    assert has_state == {"powersgd", "topk"}


def test_a_state_of_other_stages_is_refused():
    writer = SliceWriter(layout_of("topk"))
    frames(layout_of("topk"), writer, 0)
    with pytest.raises(ValueError, match="a state of topk cannot go on as powersgd"):
        SliceWriter(layout_of("powersgd")).load_state_dict(writer.state_dict())


class Halve(Stage[Float32Array, Float32Array]):
    """Sends half of everything, and what it saw of its context."""

    name = "halve"

    def __init__(self) -> None:
        self.seen: list[Context] = []

    def encode(self, x: Float32Array, context: Context) -> Float32Array:
        self.seen.append(context)
        return x / 2

    def decode(self, data: Float32Array, context: Context) -> Float32Array:
        self.seen.append(context)
        return data * 2


class Integers(Stage[Float32Array, np.ndarray]):
    """Rounds to integers times the number of calls; the next stage takes integers."""

    name = "integers"
    takes_whole_tensors = True

    def __init__(self) -> None:
        self.calls = 0

    def encode(self, x: Float32Array, context: Context) -> np.ndarray:
        self.calls += 1
        return np.rint(x).astype(np.int64) * self.calls

    def decode(self, data: np.ndarray, context: Context) -> Float32Array:
        return data.astype(np.float32)

    def state_dict(self) -> State:
        return {"calls": self.calls}

    def load_state_dict(self, state: State) -> None:
        self.calls = state["calls"]


def test_a_stage_is_added_by_one_line_of_a_policy():
    gradient = Halve()
    policy = Policy(
        gradient=lambda _: Chain(gradient, codec=Bf16()),
        curvature=lambda _: Chain(codec=Bf16()),
        parameter=lambda _: Chain(codec=Fp32()),
    )
    layout = Layout((TensorSpec("w", (300,)), TensorSpec("p", (2,), kind="parameter")), policy, 1024)
    writer, packer = SliceWriter(layout), FramePacker(5, 1, 1024)
    for piece in (*layout.slices(0), *layout.slices(1)):
        list(packer.add(piece, writer.encode(piece, np.full(piece.length, 3.0, np.float32), 5)))
    message, slices = parse_frame(packer.take(), layout)
    assert [(p.key, p.chain.number) for p, _ in slices] == [
        ((0, 0), pb.CODEC_BF16),
        ((0, 256), pb.CODEC_BF16),
        ((1, 0), pb.CODEC_FP32),
    ]
    for piece, payload in slices:
        assert np.frombuffer(payload, "<u2" if piece.key.tensor == 0 else "<f4")[0] in (0x3FC0, 3.0)  # 1.5 in bf16
        assert np.array_equal(piece.decode(payload, message.step), np.full(piece.length, 3.0))
    assert {(c.spec.name, c.shape, c.offset, c.step) for c in gradient.seen} == {
        ("w", (256,), 0, 5),
        ("w", (44,), 256, 5),
    }


def test_a_chain_undoes_its_stages_in_reverse_and_keeps_their_state_by_name():
    context = Context(TensorSpec("w", (3,)), (3,))
    chain = Chain(Halve(), Integers(), codec=Fp32())
    assert chain.takes_whole_tensors
    chain.encode(np.zeros(3, np.float32), context)
    data = chain.encode(np.array([1.0, 4.0, 7.0], np.float32), context)
    assert np.array_equal(chain.decode(data, context), [0.0, 8.0, 16.0])  # rint(0.5, 2, 3.5), twice, twice
    assert chain.state_dict() == {"integers": {"calls": 2}}
    again = Chain(Halve(), Integers(), codec=Fp32())
    again.load_state_dict(chain.state_dict())
    assert again.state_dict() == {"integers": {"calls": 2}}
