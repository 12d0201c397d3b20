"""Rounding is told from what really differs, by sketches alone."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.session.drift import FIRST, LIMIT, PER_STEP, are_alike, compare
from edge_client.sync.sketching import sketch_of

U = 2.0**-24


def weights(seed=0, size=2_000):
    generator = torch.Generator().manual_seed(seed)
    return {f"layer{i}.weight": torch.randn(size, generator=generator, dtype=torch.float64) for i in range(3)}


def rounded(model, by, seed):
    """Return a model that differs in all elements, by a part of each layer's norm."""
    generator = torch.Generator().manual_seed(seed)
    noise = {name: torch.randn(len(w), generator=generator, dtype=torch.float64) for name, w in model.items()}
    return {name: w + by * float(w.norm() / noise[name].norm()) * noise[name] for name, w in model.items()}


def test_one_wrong_element_of_a_million_is_found_and_named():
    generator = torch.Generator().manual_seed(0)
    shapes = {"first.weight": (800, 784), "second.weight": (460, 800), "output.weight": (10, 460)}
    model = {name: torch.randn(shape, generator=generator) / shape[1] ** 0.5 for name, shape in shapes.items()}
    assert sum(map(torch.numel, model.values())) == 999_800
    sketches = {device: sketch_of(model, 50) for device in "abd"}
    model["second.weight"][300, 17] += 1e-2
    sketches["c"] = sketch_of(model, 50)
    (difference,), drift = compare(sketches, math.inf)
    assert (difference.device, difference.amount) == ("c", pytest.approx(1e-2, rel=1e-4))
    assert difference.group.startswith("second (part ")
    assert drift.share < 1e-6


@settings(max_examples=25)
@given(st.integers(0, 1 << 30), st.floats(0, 500), st.floats(0, 0.3))
def test_what_rounding_explains_heals_nobody(seed, steps, part):
    allowed = min(U * (FIRST + PER_STEP * steps), LIMIT)
    model = weights()
    sketches = {device: sketch_of(rounded(model, part * allowed, seed + i), seed) for i, device in enumerate("abcd")}
    differing, drift = compare(sketches, steps)
    assert not differing
    assert drift.share < 1


@settings(max_examples=20)
@given(st.permutations("abcde"), st.sets(st.sampled_from("abcde"), min_size=1, max_size=2))
def test_those_that_differ_are_found_in_whatever_order_they_come(order, wrong):
    model = weights()
    other = {**model, "layer1.weight": model["layer1.weight"] + 0.1}
    sketches = {device: sketch_of(other if device in wrong else model, 3) for device in order}
    differing, _ = compare(sketches, 10)
    assert [(difference.device, difference.group) for difference in differing] == [(d, "layer1") for d in sorted(wrong)]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e200])
def test_values_that_are_none_count_as_different_and_are_no_reference(value):
    model = weights()
    sound = sketch_of(model, 0)
    broken = replace(sound, projections=np.full_like(sound.projections, value))
    differing, _ = compare({"a": broken, "b": broken, "c": sound} if value < 1e199 else {"a": sound, "b": broken}, 5)
    assert [difference.device for difference in differing] == (["a", "b"] if value < 1e199 else ["b"])
    assert compare({"a": broken, "b": broken}, 5)[0] == []


def test_if_nobody_is_finite_nobody_can_heal():
    model = {name: torch.full_like(w, math.nan) for name, w in weights().items()}
    assert compare({device: sketch_of(model, 0) for device in "ab"}, 5)[0] == []


def test_another_model_is_named_as_such():
    one, other = sketch_of(weights(), 0), sketch_of({"else": torch.ones(3)}, 0)
    (difference,), _ = compare({"a": one, "b": one, "c": other}, 5)
    assert (difference.device, str(difference)) == ("c", "its layers were not those of most")
    assert not are_alike(one, other)


def test_one_that_claims_large_scales_does_not_hide_another():
    model = weights()
    right = sketch_of(model, 0)
    wide = replace(right, scales=right.scales * 1e9)
    wrong = sketch_of({**model, "layer0.weight": model["layer0.weight"] + 0.1}, 0)
    differing, _ = compare({"a": wide, "b": right, "c": right, "d": wrong}, 5)
    assert [difference.device for difference in differing] == ["d"]


def test_bfloat16_weights_may_differ_by_some_of_their_own_roundings():
    model = {name: w.bfloat16() for name, w in weights().items()}
    flipped = {name: w.clone() for name, w in model.items()}
    flipped["layer0.weight"][:40] *= 1 + 2.0**-7
    sketches = {"a": sketch_of(model, 0), "b": sketch_of(model, 0), "c": sketch_of(flipped, 0)}
    assert not compare(sketches, 100)[0]


def test_sketches_that_differ_by_rounding_are_alike_at_join():
    model = weights()
    one = sketch_of(model, 0)
    assert are_alike(one, sketch_of(rounded(model, LIMIT / 4, 1), 0))
    assert not are_alike(one, sketch_of(rounded(model, LIMIT * 30, 1), 0))
    assert not are_alike(one, None)
