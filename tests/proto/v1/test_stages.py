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
FEEDBACK = [name for name in CODEC_NUMBERS if CodecChoice(name).codec().keeps_errors and name != "auto"]
"""Those of gradients."""
with_feedback = pytest.mark.parametrize("name", FEEDBACK)
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
    assert has_state == {"powersgd", "topk", "int4", "ternary", "sign", "sparse4", "sparse2", "sparse1"}


def test_a_state_of_other_stages_is_refused():
    writer = SliceWriter(layout_of("int4"))
    frames(layout_of("int4"), writer, 0)
    with pytest.raises(ValueError, match="a state of feedback cannot go on as bf16"):
        SliceWriter(layout_of("bf16")).load_state_dict(writer.state_dict())


@pytest.mark.parametrize("old", ["powersgd", "int4", "ternary", "sign", "sparse4", "sparse2", "sparse1"])
@pytest.mark.parametrize("new", ["powersgd", "int4", "sparse2", "sparse1"])
def test_an_error_goes_on_in_another_codec(old, new):
    """All these take the tensor whole. What is sent in all, by both, and what is left are what was to be sent."""
    wanted = np.zeros(2400)
    before, after = SliceWriter(layout_of(old)), SliceWriter(layout_of(new))
    for writer, layout, steps in ((before, layout_of(old), range(2)), (after, layout_of(new), range(2, 4))):
        if writer is after:
            after.load_state_dict(before.state_dict())
        (piece,) = layout.slices(0)
        for step in steps:
            wanted *= CodecChoice(old if writer is before else new).codec().codec.error_decay
            wanted += values(step, 2400)
            wanted -= piece.decode(writer.encode(piece, values(step, 2400), step), step)
    (state,) = after.state_dict().values()
    assert np.allclose(state["feedback"]["error"], wanted, atol=1e-3 * np.abs(values(0, 2400)).max())


def test_an_error_of_another_rank_goes_on_with_a_new_start():
    before = SliceWriter(layout_of("powersgd"))
    frames(layout_of("powersgd"), before, 0)
    layout = Layout(SPECS, CodecChoice("powersgd", powersgd_rank=3).policy(), FRAME_BYTES)
    (piece,), after = layout.slices(0), SliceWriter(layout)
    after.load_state_dict(before.state_dict())
    assert len(piece.decode(after.encode(piece, values(1, 2400), 1), 1)) == 2400


def test_an_error_of_slices_does_not_go_on_in_a_whole():
    sliced = SliceWriter(layout_of("topk"))
    frames(layout_of("topk"), sliced, 0)
    with pytest.raises(ValueError, match="no slice of tensor 0 at 1024"):
        SliceWriter(layout_of("int4")).load_state_dict(sliced.state_dict())
    (piece,), whole = layout_of("int4").slices(0), SliceWriter(layout_of("int4"))
    whole.load_state_dict({piece.key: sliced.state_dict()[piece.key]})
    with pytest.raises(ValueError, match="has 2400 elements here, but the error left of it 1024"):
        whole.encode(piece, values(0, 2400), 1)


@with_feedback
def test_what_did_not_arrive_is_sent_again_and_what_was_kept_is_sent_too(name):
    layout = layout_of(name)
    piece, writer = layout.slices(0)[0], SliceWriter(layout)
    whole = values(0, 2400)[: piece.length]

    def error() -> np.ndarray:
        return writer.state_dict()[piece.key]["feedback"]["error"]

    assert not writer.take_back(piece), "nothing was sent yet"
    assert writer.keep(piece, whole, 0)
    assert np.array_equal(error(), whole)
    arrived = piece.decode(writer.encode(piece, whole, 1), 1)
    left = np.float32(CodecChoice(name).codec().codec.error_decay) * whole + whole - arrived
    assert np.array_equal(error(), left)
    assert writer.take_back(piece)
    assert np.array_equal(error(), left + arrived)
    assert not writer.take_back(piece), "once is enough"
    assert writer.keep(piece, -error(), 2)
    assert not error().any()


@pytest.mark.parametrize("name", sorted(set(CODEC_NUMBERS) - set(FEEDBACK)))
def test_nothing_is_kept_without_feedback(name):
    layout = layout_of(name)
    piece, writer = layout.slices(0)[0], SliceWriter(layout)
    writer.encode(piece, values(0, piece.length), 0)
    assert not writer.keep(piece, values(0, piece.length), 0)
    assert not writer.take_back(piece)
    assert not writer.state_dict()


def test_what_is_kept_goes_through_the_stages_before_the_feedback():
    context = Context(TensorSpec("w", (3,)), (3,))
    chain = Chain(Halve(), codec=CodecChoice("topk").codec())
    assert chain.keep(np.full(3, 4.0, np.float32), context)
    assert np.array_equal(chain.state_dict()["feedback"]["error"], [2.0, 2.0, 2.0])


class Rotate(Stage[Float32Array, Float32Array]):
    """Rotates a whole tensor, and scales some of its directions a hundred times up; another rotation in each step."""

    name = "rotate"
    takes_whole_tensors = True

    def matrix(self, context: Context) -> np.ndarray:
        rng = np.random.default_rng(context.step)
        rows = context.shape[0]
        Q, _ = np.linalg.qr(rng.normal(size=(rows, rows)))
        return np.geomspace(1, 100, rows)[:, None] * Q

    def encode(self, x: Float32Array, context: Context) -> Float32Array:
        return (self.matrix(context) @ x.reshape(context.shape)).astype(np.float32).ravel()

    def decode(self, data: Float32Array, context: Context) -> Float32Array:
        return np.linalg.solve(self.matrix(context), data.reshape(context.shape)).astype(np.float32).ravel()


WHOLE = (TensorSpec("w", (40, 60), kind="delta"), *SPECS[1:])


@pytest.mark.parametrize("name", CODEC_NUMBERS)
def test_a_devices_stages_stand_before_the_codec_and_within_its_feedback(name):
    """The coordinator, which knows no stages, adds what they gave; the error stays in the values as they were."""
    choice = CodecChoice(name, powersgd_rank=2, topk_fraction=0.1)
    stages = {"w": [Rotate()]}
    theirs = Layout(WHOLE, choice.policy(), FRAME_BYTES)
    ours = Layout(WHOLE, choice.policy(lambda spec: stages.get(spec.name, [])), FRAME_BYTES)
    (piece,) = ours.slices(0)
    assert theirs.find(piece.header).key == piece.key
    writers, downlink = [SliceWriter(ours) for _ in range(2)], SliceWriter(theirs)
    wanted, errors = np.zeros(2400), []
    for step in range(3):
        wanted *= getattr(getattr(choice.codec(), "codec", None), "error_decay", 1.0)
        total = np.zeros(2400, np.float32)
        for device, writer in enumerate(writers):
            data = writer.encode(piece, values(device + step, 2400), step)
            total += theirs.slices(0)[0].decode(data, step)
            wanted += values(device + step, 2400)
            wanted -= piece.decode(data, step)
        mean = piece.decode(downlink.encode(theirs.slices(0)[0], total / 2, step), step)
        errors = [writer.state_dict().get(piece.key, {}) for writer in writers]
        if name == "fp32":
            expected = (values(step, 2400) + values(1 + step, 2400)) / 2
            assert np.allclose(mean, expected, atol=1e-3 * np.abs(expected).max())
    if name in (*FEEDBACK, "auto"):  # a delta
        left = sum(state["feedback"]["error"] for state in errors)
        assert np.allclose(left, wanted, atol=1e-4 * np.abs(values(0, 2400)).max())
    else:
        assert not any(errors)


def test_a_stage_cannot_have_a_sliced_tensor_whole():
    policy = CodecChoice("topk").policy(lambda spec: [Rotate()])
    with pytest.raises(ValueError, match="gradient of 'w', 40 x 60 float32 is sliced as topk: no stage can have it"):
        policy.chain_for(SPECS[0])


def test_parameters_and_curvature_have_no_stages():
    policy = CodecChoice("int4").policy(lambda spec: [Rotate()])
    assert not any(policy.chain_for(spec).takes_whole_tensors for spec in SPECS[2:])


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
