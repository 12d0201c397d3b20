import numpy as np
import pytest
from edgenewton.v1.codec import CODECS, Codec, codec_by_number
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

finite = hnp.arrays(
    np.float32,
    st.integers(0, 300),
    elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
)
normal = hnp.arrays(
    np.float32,
    st.integers(1, 300),
    elements=st.floats(min_value=2**-14, max_value=65504, width=32).flatmap(lambda x: st.sampled_from([x, -x])),
)
codecs = pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
RELATIVE_ERROR = {"fp32": 0.0, "fp16": 2**-11, "bf16": 2**-8}


def round_trip(codec: Codec, values: np.ndarray) -> np.ndarray:
    return codec.decode(codec.encode(values), len(values))


@codecs
@given(values=finite)
def test_size_is_what_the_codec_says(codec, values):
    assert len(codec.encode(values)) == codec.encoded_size(len(values))


@codecs
@given(values=normal)
def test_round_trip_error_is_bounded(codec, values):
    error = np.abs(round_trip(codec, values) - values)
    assert (error <= RELATIVE_ERROR[codec.name] * np.abs(values)).all()


@codecs
@given(values=finite)
def test_finite_values_stay_finite_and_a_second_trip_changes_nothing(codec, values):
    once = round_trip(codec, values)
    assert np.isfinite(once).all()
    assert np.array_equal(round_trip(codec, once), once)


@codecs
def test_values_that_are_not_finite_stay_so(codec):
    values = np.array([np.nan, np.inf, -np.inf, 1.0], dtype=np.float32)
    back = round_trip(codec, values)
    assert np.isnan(back[0])
    assert back[1] == np.inf
    assert back[2] == -np.inf
    assert back[3] == 1.0


@given(values=finite)
def test_bf16_agrees_with_torch(values):
    import torch

    ours = round_trip(CODECS["bf16"], values)
    theirs = torch.from_numpy(values.copy()).to(torch.bfloat16).float().numpy()
    # torch rounds the largest values up to infinity; ours stay at the largest finite one.
    comparable = np.isfinite(theirs)
    assert np.array_equal(ours[comparable], theirs[comparable])


@codecs
@given(data=st.binary(max_size=64), length=st.integers(0, 40))
def test_data_of_a_wrong_size_are_refused(codec, data, length):
    if len(data) == codec.encoded_size(length):
        assert len(codec.decode(data, length)) == length
    else:
        with pytest.raises(ValueError, match=f"{length} elements take"):
            codec.decode(data, length)


@codecs
def test_number_finds_the_codec(codec):
    assert codec_by_number(codec.number) is codec


def test_unknown_number_is_named():
    with pytest.raises(ValueError, match="unknown codec 14; known are fp32"):
        codec_by_number(14)
