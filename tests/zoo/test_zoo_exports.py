"""The zoo's models, exported to ONNX as any model is, give torch's probabilities; what cannot be exported says why."""

import gc

import pytest

from benchmarks.zoo.exported import largest_difference
from benchmarks.zoo.models import CASES
from edge_client.inference import ArtefactError

pytestmark = [pytest.mark.zoo, pytest.mark.filterwarnings("ignore")]

REASONS = {
    "Mixtral": "No ONNX function found",
    "EnCodec": "what is computed depends on a sample's numbers",
    "Time Series Transformer": "what is computed depends on a sample's numbers",
    "TabNet": "its graph is for batches of one size alone",
}


@pytest.mark.parametrize("name", [name for name in CASES if name not in REASONS])
def test_an_exported_model_agrees_with_torch(name):
    gc.collect()  # see tests/edge_client/inference/test_engines.py
    largest_difference(name, CASES[name], "onnx")


@pytest.mark.parametrize("name", REASONS)
def test_what_cannot_be_exported_says_so_in_a_line(name):
    with pytest.raises(ArtefactError, match=REASONS[name]) as caught:
        largest_difference(name, CASES[name], "onnx")
    assert str(caught.value).startswith(f"the model of task {name!r} cannot be exported to ONNX: ")
    assert "\n" not in str(caught.value)
