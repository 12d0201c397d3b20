"""A codec whose bytes say in which form they are: its sizes, what it refuses, and feedback over a change of form."""

import numpy as np
import pytest
from edgenewton.v1 import exchange_pb2 as pb
from edgenewton.v1.codecs import CodecChoice, Context, form_from_proto, form_to_proto
from edgenewton.v1.codecs.adaptive import CODEC_OF, Adaptive, FormInUse
from edgenewton.v1.forms import Form
from edgenewton.v1.framing import FramePacker, Layout, SliceWriter, parse_frame
from edgenewton.v1.tensor_spec import TensorSpec
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

SPEC = TensorSpec("w", (4000,), kind="delta")
CONTEXT = Context(SPEC, SPEC.shape)
forms = pytest.mark.parametrize("form", Form)
ordinary = st.floats(-1e4, 1e4, width=32).map(lambda x: x if abs(x) > 2**-14 else 0.0)


def normal(seed: int, size: int = 4000) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=size).astype(np.float32)


def writer_of(layout: Layout) -> SliceWriter:
    return SliceWriter(layout, CodecChoice().policy())


def layout() -> Layout:
    return Layout((SPEC,), CodecChoice().policy(), 1 << 20)


@forms
@given(values=hnp.arrays(np.float32, st.integers(1, 700), elements=ordinary))
def test_what_is_read_is_what_the_forms_own_codec_reads(form, values):
    context = Context(TensorSpec("w", values.shape), values.shape)
    codec = Adaptive(FormInUse(form))
    data = codec.encode(values, context)
    assert codec.smallest_size(values.shape) <= len(data) <= codec.encoded_size(values.shape)
    theirs = CODEC_OF[form]
    assert data[0] == theirs.number
    assert data[1:] == bytes(theirs.encode(values, context))
    reader = Adaptive(FormInUse())  # what it would write with does not matter
    assert np.array_equal(reader.decode(memoryview(data), context), theirs.decode(data[1:], context))


@forms
@given(data=st.binary(max_size=400))
def test_any_bytes_are_decoded_or_refused(form, data):
    codec, context = Adaptive(FormInUse()), Context(TensorSpec("w", (60,)), (60,))
    try:
        values = codec.decode(bytes((CODEC_OF[form].number,)) + data, context)
    except ValueError:
        return
    assert values.shape == (60,)


def test_a_form_that_does_not_exist_is_refused():
    codec = Adaptive(FormInUse())
    data = bytearray(codec.encode(normal(0), CONTEXT))
    for number in {*range(256)} - {pb.CODEC_INT4, pb.CODEC_SPARSE_SIGN}:
        data[0] = number
        with pytest.raises(ValueError, match=f"auto has no form {number}; known are 7 for int4, 13 for sparse1"):
            codec.decode(bytes(data), CONTEXT)


def test_the_bytes_of_the_other_form_are_refused():
    codec = Adaptive(FormInUse(Form.SPARSE1))
    data = bytearray(codec.encode(normal(0), CONTEXT))
    data[0] = pb.CODEC_INT4
    with pytest.raises(ValueError, match=r"4000 elements take .* bytes as int4, but .* came \(in auto\)"):
        codec.decode(bytes(data), CONTEXT)


def test_a_sparse_form_takes_a_sixth_of_the_bytes():
    sizes = {
        form: len(Adaptive(FormInUse(form)).encode(normal(0, 100_000), CONTEXT._replace(shape=(100_000,))))
        for form in Form
    }
    assert 6 < sizes[Form.INT4] / sizes[Form.SPARSE1] < 8


def test_error_decay_is_that_of_the_form_in_use():
    in_use = FormInUse()
    codec = Adaptive(in_use)
    assert codec.error_decay == 1.0
    in_use.form = Form.SPARSE1
    assert codec.error_decay == 0.7


@pytest.mark.parametrize("changes", [(Form.INT4, Form.SPARSE1, Form.INT4), (Form.SPARSE1, Form.INT4, Form.SPARSE1)])
def test_the_error_stays_when_the_form_changes(changes):
    """What was sent and what is left are what was to be sent, less what the sparse form forgets."""
    of_all = layout()
    (piece,), writer = of_all.slices(0), writer_of(of_all)
    left = np.zeros(4000)
    for step in range(9):
        form = changes[step // 3]
        writer.write_as(form)
        data = writer.encode(piece, normal(step), step)
        assert data[0] == CODEC_OF[form].number
        left = CODEC_OF[form].error_decay * left + normal(step) - piece.decode(data, step)
    (state,) = writer.state_dict().values()
    assert np.allclose(state["feedback"]["error"], left, atol=1e-4)
    assert np.linalg.norm(left) > 0


def test_where_nothing_is_forgotten_the_sum_arrives_over_a_change_of_form(monkeypatch):
    monkeypatch.setattr(type(CODEC_OF[Form.SPARSE1]), "error_decay", 1.0)
    of_all = layout()
    (piece,), writer = of_all.slices(0), writer_of(of_all)
    wanted = sent = np.zeros(4000)
    for step in range(12):
        writer.write_as(list(Form)[step // 2 % 2])
        wanted = wanted + normal(step)
        sent = sent + piece.decode(writer.encode(piece, normal(step), step), step)
    (state,) = writer.state_dict().values()
    assert np.allclose(sent + state["feedback"]["error"], wanted, atol=1e-3)


def test_what_was_sent_in_one_form_is_taken_back_in_the_other():
    of_all = layout()
    (piece,), writer = of_all.slices(0), writer_of(of_all)
    writer.encode(piece, normal(0), 0)
    writer.write_as(Form.SPARSE1)
    assert writer.take_back(piece)
    (state,) = writer.state_dict().values()
    assert np.allclose(state["feedback"]["error"], normal(0), atol=1e-5)


def test_senders_of_one_session_may_write_in_different_forms():
    of_all, frames = layout(), []
    (piece,) = of_all.slices(0)
    for form in Form:
        writer, packer = writer_of(of_all), FramePacker(0, 1, 1 << 20)
        writer.write_as(form)
        list(packer.add(piece, writer.encode(piece, normal(1), 0)))
        frames.append(packer.take())
    decoded = []
    for frame in frames:
        ((found, data),) = parse_frame(frame, of_all).slices
        decoded.append(found.decode(data, 0))
    assert np.linalg.norm(decoded[0] - normal(1)) < 0.2 * np.linalg.norm(normal(1))
    assert np.count_nonzero(decoded[1]) == 400


def test_a_writer_of_another_codec_has_one_form():
    of_all = Layout((SPEC,), CodecChoice("ternary").policy(), 1 << 20)
    (piece,), writer = of_all.slices(0), SliceWriter(of_all)
    before = bytes(SliceWriter(of_all).encode(piece, normal(0), 0))
    writer.write_as(Form.SPARSE1)
    assert bytes(writer.encode(piece, normal(0), 0)) == before


def test_what_an_exchange_takes_in_each_form_counts_what_has_none():
    small, buffer = TensorSpec("b", (100,), kind="delta"), TensorSpec("m", (50,), kind="parameter")
    curvature = TensorSpec("A", (5050,), kind="curvature")
    sizes = CodecChoice().form_sizes((SPEC, small, buffer, curvature))
    rest = 50 + 2 + 4 * 50
    assert sizes == {form: rest + CODEC_OF[form].encoded_size((4000,)) for form in Form}
    assert not CodecChoice().form_sizes((small, buffer))  # nothing that could be sparse
    assert not CodecChoice("int4").form_sizes((SPEC,))
    assert [choice.has_forms for choice in (CodecChoice(), CodecChoice("int4"))] == [True, False]


def test_forms_on_the_wire():
    assert [form_from_proto(form_to_proto(form)) for form in Form] == list(Form)
    assert form_to_proto(None) == pb.CODEC_UNSPECIFIED
    assert form_from_proto(pb.CODEC_UNSPECIFIED) is None
    assert form_from_proto(pb.CODEC_BF16) is None
