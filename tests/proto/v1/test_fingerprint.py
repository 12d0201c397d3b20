import pytest
from edgenewton.v1 import exchange_pb2 as pb
from edgenewton.v1.fingerprint import (
    KINDS,
    fingerprint_from_proto,
    first_difference,
    first_option_difference,
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
