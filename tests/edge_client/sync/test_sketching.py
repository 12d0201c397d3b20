"""Sketches of weights: what they find, and that they are the same everywhere."""

import numpy as np
import pytest
import torch
from edgenewton.v1.sketch import MAX_GROUPS, PROJECTIONS
from edgenewton.v1.sketch_message import sketch_to_proto
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from edge_client.sync.replica import ModelReplica
from edge_client.sync.sketching import grouped, sketch_of

MASK = (1 << 64) - 1


def amounts(one, other):
    """Return the estimated norm of the difference of each group."""
    return np.sqrt(((one.projections - other.projections) ** 2).mean(1))


def split_mix(counter, key):
    x = ((counter + 1) * 0x9E3779B97F4A7C15 + key) & MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def signs(counter, key):
    bits = split_mix(counter, key)
    return np.array([1 - 2 * (bits >> (63 - p) & 1) for p in range(PROJECTIONS)])


@settings(max_examples=30)
@given(st.integers(1, 16_384), st.integers(0, 2**63), st.integers(0, 1 << 30))
def test_signs_are_those_of_the_formula(size, seed, place):
    place %= size
    spike = torch.zeros(size)
    spike[place] = 1.0
    key = split_mix(seed, 0)
    expected = signs(place % 4096, key) * signs(place // 4096, split_mix(key, 1))
    assert sketch_of({"w": spike}, seed).projections.tolist() == [expected.tolist()]


@settings(max_examples=30)
@given(st.data())
def test_one_changed_element_is_found_in_its_group_and_measured(data):
    sizes = data.draw(st.lists(st.integers(1, 60_000), min_size=1, max_size=5))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1_000)))
    weights = {f"layer{i}.weight": torch.randn(size, generator=generator) for i, size in enumerate(sizes)}
    name = data.draw(st.sampled_from(sorted(weights)))
    place = data.draw(st.integers(0, len(weights[name]) - 1))
    seed = data.draw(st.integers(0, 1 << 40))
    before = sketch_of(weights, seed)
    weights[name][place] += 0.25
    changed = amounts(sketch_of(weights, seed), before)
    (group,) = np.flatnonzero(changed > 1e-6)
    assert changed[group] == pytest.approx(0.25, rel=1e-4)
    pieces = grouped({name: len(tensor) for name, tensor in weights.items()})[before.names[group]]
    assert any(piece.name == name and piece.start <= place < piece.stop for piece in pieces)


@settings(max_examples=40)
@given(st.integers(0, 1 << 30))
def test_the_norm_of_a_difference_is_estimated(seed):
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(16_000, generator=generator, dtype=torch.float64)
    rounding = 1e-6 * torch.randn(16_000, generator=generator, dtype=torch.float64)
    before, after = (sketch_of({"w": w}, seed) for w in (weights, weights + rounding))
    # The square is that of a chi-squared variable of 4 degrees: it is in these bounds but for one in 10^6.
    assert 0.02 < float(amounts(before, after)[0] / rounding.norm()) < 3.2
    assert before.scales[0] == pytest.approx(float(weights.norm()))


def test_differences_that_cancel_in_one_step_show_in_another():
    weights = torch.zeros(8)
    changed = torch.tensor([1.0, -1.0, 0, 0, 0, 0, 0, 0])
    found = [amounts(sketch_of({"w": weights}, seed), sketch_of({"w": changed}, seed))[0] for seed in range(64)]
    assert sum(amount > 0 for amount in found) > 50  # 15 of 16, in expectation


@given(st.lists(st.integers(0, 100_000), max_size=80), st.booleans())
def test_every_element_is_in_one_group(sizes, has_biases):
    names = {f"block.{i}.weight": size for i, size in enumerate(sizes)}
    if has_biases:
        names = {n: s for name, size in names.items() for n, s in ((name, size), (name.replace("weight", "bias"), 3))}
    groups = grouped(names)
    assert len(groups) <= MAX_GROUPS
    pieces = [piece for of_group in groups.values() for piece in of_group]
    for name, size in names.items():
        places = sorted((piece.start, piece.stop) for piece in pieces if piece.name == name)
        assert [stop for _, stop in places[:-1]] == [start for start, _ in places[1:]]
        assert not places if not size else (places[0][0], places[-1][1]) == (0, size)


def test_groups_are_named_for_their_layers():
    assert list(grouped({"conv.weight": 9, "conv.bias": 3, "scale": 1})) == ["conv", "scale"]
    large = list(grouped({"conv.weight": 9, "hidden.weight": 40_000, "hidden.bias": 10}))
    assert large == ["conv", *(f"hidden (part {part} of 3)" for part in (1, 2, 3))]
    many = list(grouped({f"layer{i}.weight": 10 for i in range(64)}))
    assert many[0] == "layer0 to layer1"
    long = {f"{'very.' * 60}deep{i}.weight": 10 for i in range(100)}
    sketch = sketch_of({name: torch.ones(size) for name, size in long.items()}, 0)
    assert sketch_to_proto(sketch).ByteSize() < 5_000


def test_a_sketch_does_not_depend_on_layout_threads_or_device_order():
    weights = torch.randn(300, 200, generator=torch.Generator().manual_seed(0))
    one, other = sketch_of({"w": weights}, 5), sketch_of({"w": weights.mT.contiguous().mT}, 5)
    assert np.abs(one.projections - other.projections).max() < 1e-10
    torch.set_num_threads(2)
    try:
        again = sketch_of({"w": weights}, 5)
    finally:
        torch.set_num_threads(1)
    assert np.abs(one.projections - again.projections).max() < 1e-10


@pytest.mark.parametrize(
    ("dtype", "roundoff"),
    [(torch.float64, 2.0**-24), (torch.float32, 2.0**-24), (torch.float16, 2.0**-11), (torch.bfloat16, 2.0**-8)],
)
def test_the_roundoff_is_that_of_the_type(dtype, roundoff):
    assert sketch_of({"w": torch.ones(3, dtype=dtype)}, 0).roundoffs.tolist() == [roundoff]


def test_zeros_are_measured_by_the_other_weights():
    sketch = sketch_of({"a.weight": torch.full((100,), 2.0), "b.weight": torch.zeros(300)}, 0)
    assert sketch.scales.tolist() == pytest.approx([20.0, 300**0.5])


def test_weights_that_are_not_finite_show_in_their_group_alone():
    sketch = sketch_of({"a.weight": torch.tensor([1.0, float("nan")]), "b.weight": torch.ones(2)}, 0)
    assert np.isnan(sketch.projections[0]).all()
    assert np.isfinite(sketch.projections[1]).all()


def test_personal_parameters_are_no_part_of_what_is_compared():
    def replica(model):
        staying = ["1.weight", "1.bias"]
        return ModelReplica(model, is_shared=True, apply=lambda _: None, before=dict, staying=lambda: staying)

    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    before = replica(model).sketch(1), replica(model).digest()
    with torch.no_grad():
        model[1].weight.add_(1.0)
    after = replica(model).sketch(1), replica(model).digest()
    assert after[0].names == ("0",)
    assert (after[0].projections == before[0].projections).all()
    assert after[1] == before[1]
    with torch.no_grad():
        model[0].weight.add_(1.0)
    assert (replica(model).sketch(1).projections != before[0].projections).any()
