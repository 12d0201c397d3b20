import pytest
from edgenewton.v1 import exchange_pb2 as pb
from edgenewton.v1.fingerprint import (
    KINDS,
    fingerprint_from_proto,
    first_difference,
    first_option_difference,
    spec_from_proto,
    spec_to_proto,
)
from edgenewton.v1.tensor_spec import TensorSpec
from hypothesis import given
from hypothesis import strategies as st


@given(
    st.lists(
        st.builds(
            TensorSpec,
            name=st.text(min_size=1, max_size=5),
            shape=st.lists(st.integers(0, 9), max_size=3).map(tuple),
            dtype=st.sampled_from(["float32", "float64", "float16", "bfloat16"]),
            kind=st.sampled_from(list(KINDS)),
        ),
        min_size=1,
        unique_by=lambda spec: (spec.kind, spec.name),
    )
)
def test_fingerprint_survives_the_wire(specs):
    assert fingerprint_from_proto([spec_to_proto(spec) for spec in specs]) == tuple(specs)
    assert first_difference(specs, specs) is None


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "no tensors"),
        ([spec_to_proto(TensorSpec("w", (2,)))] * 2, "'w', 2 float32 is named twice"),
        ([pb.TensorSpec(name="w", dtype=99, kind=1)], "'w' has dtype 99"),
        ([spec_to_proto(TensorSpec("w", (1 << 40,)))], "is larger than"),
    ],
)
def test_wrong_fingerprints_are_named(messages, message):
    with pytest.raises(ValueError, match=message):
        fingerprint_from_proto(messages)


def test_the_first_difference_is_named_with_both_shapes():
    ours = [TensorSpec("a", (1,)), TensorSpec("b", (2, 3)), TensorSpec("c", (4,))]
    theirs = [TensorSpec("a", (1,)), TensorSpec("b", (3, 3)), TensorSpec("c", (5,))]
    assert first_difference(ours, theirs) == (
        "the session has the gradient of 'b', 2 x 3 float32 where this device has the gradient of 'b', 3 x 3 float32"
    )
    assert "which this device lacks" in first_difference(ours, ours[:2])
    assert "which the session lacks" in first_difference(ours[:2], ours)
    assert first_option_difference({"lr": "0.1", "x": "1"}, {"lr": "0.2", "x": "1"}) == (
        "option 'lr' is 0.1 in the session but 0.2 on this device"
    )


def vector(*parts, size=None):
    elements = sum(part.size for part in parts) if size is None else size
    return TensorSpec("a to b", (elements,), kind="delta", parts=parts)


def delta(name, *shape):
    return TensorSpec(name, shape, kind="delta")


def test_a_vector_keeps_its_parts():
    spec = vector(delta("a", 1, 3, 2), delta("b", 4))
    assert spec_from_proto(spec_to_proto(spec)) == spec


def test_the_part_that_differs_is_named():
    ours, theirs = vector(delta("a", 1, 3, 2), delta("b", 4)), vector(delta("a", 1, 2, 3), delta("b", 4))
    assert first_difference([ours], [theirs]) == (
        "the session has the delta of 'a', 1 x 3 x 2 float32 where this device has the delta of 'a', 1 x 2 x 3 float32"
    )
    fewer = vector(delta("a", 1, 3, 2))
    assert "the delta of 'b', 4 float32, which this device lacks" in first_difference([ours], [fewer])
    renamed = TensorSpec("a to c", ours.shape, kind="delta", parts=ours.parts)
    assert "'a to c'" in first_difference([ours], [renamed])


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        (vector(delta("a", 3), delta("b", 4), size=8), "no vector of the 7 elements of its parts"),
        (vector(delta("a", 3), TensorSpec("b", (4,))), "of another kind"),
        (vector(vector(delta("a", 3), delta("b", 4))), "parts of its own"),
    ],
)
def test_a_vector_that_is_none_is_refused(spec, text):
    with pytest.raises(ValueError, match=text):
        spec_from_proto(spec_to_proto(spec))


@pytest.mark.parametrize("structure", ["", "triangles", "diagonals"])
def test_what_the_elements_of_a_tensor_stand_for_travels_too(structure):
    spec = TensorSpec("l:A", (2, 6), kind="curvature", structure=structure)
    assert spec_from_proto(spec_to_proto(spec)) == spec


@pytest.mark.parametrize("shape", [(), (7,), (2, 0)])
def test_a_tensor_that_cannot_hold_triangles_is_refused(shape):
    with pytest.raises(ValueError, match="its last dimension is not n"):
        spec_from_proto(spec_to_proto(TensorSpec("A", shape, kind="curvature", structure="triangles")))


def test_an_unknown_structure_is_refused():
    message = spec_to_proto(TensorSpec("A", (3,), kind="curvature"))
    message.structure = 99
    with pytest.raises(ValueError, match="tensor 'A' has structure 99"):
        spec_from_proto(message)
