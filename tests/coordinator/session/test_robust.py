"""Robust rules: each against a dense reference of its own, whatever the order, the pieces and the scale."""

from itertools import permutations

import numpy as np
import pytest
from edgenewton.v1.framing import SliceKey
from edgenewton.v1.tensor_spec import TensorSpec, matrix_size

from coordinator.session.diagonals import diagonal_positions
from coordinator.session.robust import RULES, Stack, StepRule, tolerated
from coordinator.session.robust.step_rule import Held
from coordinator.session.robust.vectors import gram

SIZES = (5, 1, 20_000)
"""Of the pieces; one is larger than what is worked on at once."""
DEVICES = 8


def step_of(rng: np.random.Generator, devices: int = DEVICES, scale: float = 1.0) -> np.ndarray:
    """Return vectors `[devices, elements]` with something in common."""
    common = rng.normal(size=sum(SIZES))
    return ((common + 2 * rng.normal(size=(devices, sum(SIZES)))) * scale).astype(np.float32)


def stack(vectors: np.ndarray, samples: list[int] | None = None, order=None) -> Stack:
    order = range(len(vectors)) if order is None else order
    names = sorted(f"d{i}" for i in order)
    pieces = {f"d{i}": np.split(vectors[i], np.cumsum(SIZES)[:-1]) for i in order}
    samples = samples or [32] * len(vectors)
    return Stack(names, [samples[int(name[1:])] for name in names], [pieces[name] for name in names])


def combined(rule, vectors: np.ndarray, samples: list[int] | None = None) -> np.ndarray:
    return np.concatenate(rule.combine(stack(vectors, samples)).pieces)


def weights(samples: list[int]) -> np.ndarray:
    bounded = np.minimum(samples, np.median(samples))
    return bounded / bounded.sum()


class DenseClip:
    def __init__(self) -> None:
        self.medians: list[float] = []

    def clip(self, x: np.ndarray) -> np.ndarray:
        norms = np.linalg.norm(x, axis=1)
        self.medians = [*self.medians, np.median(norms)][-10:]
        return x * np.minimum(1, np.median(self.medians) / norms)[:, None]

    def __call__(self, x: np.ndarray, w: np.ndarray) -> np.ndarray:
        return w @ self.clip(x)


def dense_median(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    return np.median(x, axis=0)


def dense_trimmed(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    return np.sort(x, axis=0)[2:-2].mean(axis=0)


def krum_order(x: np.ndarray, f: int = 2) -> np.ndarray:
    apart = np.array([[np.sum((a - b) ** 2) for b in x] for a in x])
    scores = [sum(sorted(np.delete(row, i))[: len(x) - f - 2]) for i, row in enumerate(apart)]
    return np.argsort(scores)


def dense_krum(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    return x[krum_order(x)[0]]


def dense_multi_krum(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    chosen = krum_order(x)[:6]
    return np.average(x[chosen], axis=0, weights=w[chosen])


class DenseCentred:
    def __init__(self) -> None:
        self.m, self.v, self.t = 0.0, 0.0, 0

    def __call__(self, x: np.ndarray, w: np.ndarray) -> np.ndarray:
        self.t += 1
        self.m = 0.9 * self.m + 0.1 * x
        momenta, v = self.m / (1 - 0.9**self.t), self.v
        for _ in range(3):
            away = momenta - v
            norms = np.linalg.norm(away, axis=1)
            v = v + w @ (away * np.minimum(1, np.median(norms) / norms)[:, None])
        self.v = v
        return v


class DenseHistory(DenseClip):
    def __init__(self) -> None:
        super().__init__()
        self.m, self.t = 0.0, 0

    def __call__(self, x: np.ndarray, w: np.ndarray) -> np.ndarray:
        self.t += 1
        y = self.clip(x)
        self.m = 0.9 * self.m + 0.1 * y
        means = self.m / (1 - 0.9**self.t)
        kept = list(range(len(x)))
        for _ in range(2):
            kept.remove(max(kept, key=lambda i: sum(np.sum((means[i] - means[j]) ** 2) for j in kept)))
        pairs = [np.sum((means[i] - means[j]) ** 2) for i in kept for j in kept if i != j]
        others = [i for i in range(len(x)) if i not in kept]
        usual = 1.25**2 * np.mean(pairs)
        kept += [i for i in others if np.mean([np.sum((means[i] - means[j]) ** 2) for j in kept]) <= usual]
        return np.average(y[kept], axis=0, weights=w[kept])


DENSE = {
    "clip": DenseClip,
    "median": lambda: dense_median,
    "trimmed-mean": lambda: dense_trimmed,
    "krum": lambda: dense_krum,
    "multi-krum": lambda: dense_multi_krum,
    "centred-clip": DenseCentred,
    "history": DenseHistory,
}


@pytest.mark.parametrize("name", RULES)
def test_a_rule_does_what_its_dense_reference_does_over_several_steps(name):
    rng = np.random.default_rng(3)
    rule, dense = RULES[name](2), DENSE[name]()
    for number in range(6):
        vectors = step_of(rng)
        if number > 1:
            vectors[6:] *= -10
        samples = [32, 32, 16, 32, 40, 32, 1 << 20, 8]
        wanted = dense(vectors.astype(np.float64), weights(samples))
        np.testing.assert_allclose(combined(rule, vectors, samples), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", RULES)
def test_a_rule_gives_the_same_bytes_in_any_order_and_changes_nothing_that_it_was_given(name):
    vectors = step_of(np.random.default_rng(0), devices=3)
    before = vectors.copy()
    results = set()
    for order in permutations(range(3)):
        rule = RULES[name](None)
        for _ in range(2):
            last = rule.combine(stack(vectors, order=order)).pieces
        results.add(b"".join(piece.tobytes() for piece in last))
    assert len(results) == 1
    assert np.array_equal(vectors, before)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("devices", [1, 2, 3, 5])
def test_few_devices_that_are_alike_have_what_each_of_them_has(name, devices):
    rule = RULES[name](None)
    same = np.tile(step_of(np.random.default_rng(1), devices=1), (devices, 1))
    for _ in range(3):
        got = combined(rule, same)
    np.testing.assert_allclose(got, same[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("value", [0.0, 1e25, -1e25, 1e-30])
def test_the_largest_and_smallest_values_give_finite_results(name, value):
    vectors = step_of(np.random.default_rng(2))
    vectors[7] = value
    rule = RULES[name](None)
    for _ in range(3):
        assert np.isfinite(combined(rule, vectors)).all()
    assert np.isfinite(combined(RULES[name](None), np.full_like(vectors, value))).all()


@pytest.mark.parametrize("name", ["clip", "median", "trimmed-mean", "multi-krum", "centred-clip", "history"])
def test_two_of_eight_with_reversed_vectors_of_ten_times_the_length_hardly_change_the_result(name):
    rng = np.random.default_rng(5)
    common = rng.normal(size=sum(SIZES))
    rule = RULES[name](None)
    for _ in range(8):
        vectors = (common + rng.normal(size=(DEVICES, sum(SIZES)))).astype(np.float32)
        vectors[6:] *= -10
        got = combined(rule, vectors)
    assert got @ common > 0.4 * (common @ common)
    mean = vectors.mean(axis=0)
    assert mean @ common < 0


def test_history_finds_who_is_a_little_off_all_the_time_and_takes_back_who_is_not():
    rng = np.random.default_rng(6)
    rule = RULES["history"](None)
    common = rng.normal(size=sum(SIZES))
    for _ in range(30):
        vectors = (common + 3 * rng.normal(size=(DEVICES, sum(SIZES)))).astype(np.float32)
        honest = vectors[:6]
        vectors[6:] = honest.mean(axis=0) - 1.5 * honest.std(axis=0)  # Baruch et al. 2019
        outcome = rule.combine(stack(vectors))
    assert set(outcome.distrusted) == {"d6", "d7"}
    assert "unlike what most sent" in outcome.unlike["d6"]
    for _ in range(60):
        vectors = (common + 3 * rng.normal(size=(DEVICES, sum(SIZES)))).astype(np.float32)
        outcome = rule.combine(stack(vectors))
    assert not outcome.distrusted


def test_who_was_long_gone_is_forgotten_and_who_comes_back_begins_anew():
    rng = np.random.default_rng(7)
    rule = RULES["history"](0)
    vectors = step_of(rng)
    rule.combine(stack(vectors))
    for _ in range(100):
        rule.combine(stack(vectors, order=range(7)))
    assert "d7" not in rule._means._of
    assert np.isfinite(np.concatenate(rule.combine(stack(vectors)).pieces)).all()


def test_claiming_many_samples_gives_no_more_than_the_median_weight():
    found = stack(step_of(np.random.default_rng(0)), [32, 32, 32, 16, 32, 32, 32, 1 << 20]).weights
    assert found[7] == found[0] > found[3]
    assert found.sum() == pytest.approx(1)


def test_inner_products_are_those_of_whole_vectors():
    vectors = step_of(np.random.default_rng(0), scale=1e20)
    whole = vectors.astype(np.float64)
    np.testing.assert_allclose(gram(stack(vectors).vectors), whole @ whole.T, rtol=1e-12)


@pytest.mark.parametrize(
    ("devices", "wanted", "found"), [(8, None, 2), (3, None, 0), (8, 3, 3), (4, 3, 1), (1, 1, 0), (2, 1, 0)]
)
def test_how_many_bad_devices_are_borne(devices, wanted, found):
    assert tolerated(devices, wanted) == found


# ------------------------------------------------------------------ whole steps

SPECS = (
    TensorSpec("w", (4,)),
    TensorSpec("b", (2,)),
    TensorSpec("l:A", (2, 6), kind="curvature", structure="triangles"),
    TensorSpec("l:G", (1, 3), kind="curvature", structure="diagonals"),
    TensorSpec("running_mean", (2,), kind="parameter"),
    TensorSpec("doubts", (1,), kind="curvature"),
)
A = SliceKey(2, 0)


def packed(matrices: np.ndarray) -> np.ndarray:
    rows, columns = np.triu_indices(matrices.shape[-1])
    return matrices[:, rows, columns].reshape(-1).astype(np.float32)


def covariance(rng: np.random.Generator) -> np.ndarray:
    x = rng.normal(size=(2, 20, 3))
    return np.einsum("bni,bnj->bij", x, x) / 20


def honest_step(rng: np.random.Generator, devices: int = 5) -> dict[SliceKey, list[Held]]:
    names = [f"d{i}" for i in range(devices)]
    own = {
        SliceKey(0, 0): [rng.normal(size=4) for _ in names],
        SliceKey(1, 0): [rng.normal(size=2) for _ in names],
        A: [packed(covariance(rng)) for _ in names],
        SliceKey(3, 0): [rng.random(3) for _ in names],
        SliceKey(4, 0): [np.array([1.0, i]) for i in range(devices)],
        SliceKey(5, 0): [np.array([0.0]) for _ in names],
    }
    return {
        key: [Held(name, np.asarray(v, np.float32), 32) for name, v in zip(names, values, strict=True)]
        for key, values in own.items()
    }


def replaced(held: list[Held], device: str, values: np.ndarray) -> list[Held]:
    return [h._replace(values=np.asarray(values, np.float32)) if h.device == device else h for h in held]


NAMES = {f"d{i}" for i in range(5)}


def test_each_kind_takes_its_rule():
    step = honest_step(np.random.default_rng(0))
    step[SliceKey(5, 0)] = replaced(step[SliceKey(5, 0)], "d4", np.ones(1))
    values = StepRule(lambda: RULES["median"](None)).combine(step, NAMES, SPECS).values
    assert values.keys() == step.keys()
    np.testing.assert_allclose(values[SliceKey(0, 0)], np.median([h.values for h in step[SliceKey(0, 0)]], axis=0))
    np.testing.assert_allclose(values[A], np.mean([h.values for h in step[A]], axis=0), rtol=1e-6)
    assert values[SliceKey(4, 0)].tolist() == [1.0, 2.0]
    assert values[SliceKey(5, 0)].tolist() == [0.0]  # one device alone cannot end a layer's curvature


@pytest.mark.parametrize(
    "matrices",
    [
        -10 * np.tile(np.eye(3), (2, 1, 1)),
        np.tile(np.array([[1.0, 9, 9], [9, 1, 9], [9, 9, 1]]), (2, 1, 1)),
    ],
    ids=["negative", "not a covariance"],
)
def test_impossible_curvature_is_left_out_and_named(matrices):
    step = honest_step(np.random.default_rng(0))
    step[A] = replaced(step[A], "d3", packed(matrices))
    outcome = StepRule(lambda: RULES["clip"](None)).combine(step, NAMES, SPECS)
    wanted = np.mean([h.values for h in step[A] if h.device != "d3"], axis=0)
    np.testing.assert_allclose(outcome.values[A], wanted, rtol=1e-6)
    assert "'l:A'" in outcome.unlike["d3"]


def test_a_trace_counts_as_ten_times_the_median_at_most():
    step = honest_step(np.random.default_rng(0))
    step[A] = replaced(step[A], "d3", 1e24 * step[A][3].values)
    values = StepRule(lambda: RULES["clip"](None)).combine(step, NAMES, SPECS).values[A]
    diagonals = diagonal_positions(SPECS[2])
    traces = [h.values[diagonals].sum() for h in step[A]]
    assert values[diagonals].sum() <= (10 * np.median(traces) + sum(sorted(traces)[:4])) / 5 * 1.0001


def test_who_is_distrusted_has_no_part_in_the_curvature():
    rule = StepRule(lambda: RULES["history"](1))
    rng = np.random.default_rng(0)
    for _ in range(20):
        step = honest_step(rng)
        step[SliceKey(0, 0)] = [
            h._replace(values=np.full(4, -5.0 if h.device == "d2" else 1.0, np.float32) + h.values / 10)
            for h in step[SliceKey(0, 0)]
        ]
        outcome = rule.combine(step, NAMES, SPECS)
    assert outcome.unlike.keys() == {"d2"}
    wanted = np.mean([h.values for h in step[A] if h.device != "d2"], axis=0)
    np.testing.assert_allclose(outcome.values[A], wanted, rtol=1e-6)


def test_only_whole_contributions_count():
    step = honest_step(np.random.default_rng(0))
    values = StepRule(lambda: RULES["median"](None)).combine(step, NAMES - {"d4"}, SPECS).values
    np.testing.assert_allclose(values[SliceKey(0, 0)], np.median([h.values for h in step[SliceKey(0, 0)][:4]], axis=0))


@pytest.mark.parametrize("size", [1, 2, 5, 30])
def test_diagonals_are_where_upper_triangles_have_them(size):
    rows, columns = np.triu_indices(size)
    spec = TensorSpec("A", (3, len(rows)), kind="curvature", structure="triangles")
    wanted = np.concatenate([np.flatnonzero(rows == columns) + i * len(rows) for i in range(3)])
    assert diagonal_positions(spec).tolist() == wanted.tolist()
    assert matrix_size(len(rows)) == size
    assert matrix_size(len(rows) + 1) is None or size == 1
