import math

import pytest

from benchmarks.long.curves import best_variant, cost_to, final_accuracy, smoothed
from benchmarks.long.results import contest, headline
from benchmarks.long.trials import Trial


def trial(plain, averaged=None, method="sgd", options=None, seed=0, end="completed", sgd_step_s=0.5, batches=None):
    averaged = averaged or [None] * len(plain)
    curve = [
        [20 * n, value, mean, 2.0 * n, 0.5 * n, 10.0 * n]
        for n, (value, mean) in enumerate(zip(plain, averaged, strict=True), start=1)
    ]
    options = options if options is not None else {} if method == "kfac" else {"lr": 0.1}
    return Trial("digits", method, options, seed, batches or 20 * len(plain), end, curve, sgd_step_s)


def test_the_final_accuracy_is_the_mean_of_the_last_evaluations():
    assert final_accuracy(trial([0.0, 0.5, 0.6, 0.7, 0.8, 0.9])) == pytest.approx(0.7)
    assert final_accuracy(trial([0.9] * 5, end="diverged")) == 0


def test_the_better_of_the_weights_and_their_average_counts():
    both = trial([0.5] * 5, [0.8] * 5)

    assert best_variant(both) == "averaged"
    assert final_accuracy(both) == pytest.approx(0.8)


def test_the_target_is_reached_when_the_mean_of_three_evaluations_is():
    one_peak = trial([0.1, 0.9, 0.1, 0.9, 0.9, 0.9])

    cost = cost_to(one_peak, 0.8)

    assert (cost.batches, cost.device_s, cost.megabytes) == (120, 12.0, 60.0)
    assert cost.sgd_steps == pytest.approx(24.0)
    assert [round(value, 3) for _, value in smoothed(one_peak.points, "plain")] == [0.367, 0.633, 0.633, 0.9]


def test_averaging_is_paid_for_where_it_counts():
    assert cost_to(trial([0.1] * 3, [0.9] * 3), 0.8).device_s == 6.0 + 1.5


def test_what_was_not_reached_is_infinite():
    assert math.isinf(cost_to(trial([0.1] * 5), 0.8).batches)


def test_ratios_are_of_the_least_that_a_baseline_took():
    slow = [trial([0.1] * 6 + [0.9] * 6, seed=seed) for seed in range(3)]
    tuned = trial([0.1] * 2 + [0.9] * 4, options={"lr": 0.3})
    ours = [trial([0.9] * 12, method="kfac", seed=seed, sgd_step_s=0.25) for seed in range(3)]

    found = contest("digits", [*slow, tuned, *ours])

    assert found.target == pytest.approx(0.895)
    assert found.best_baseline("batches").options == {"lr": 0.3}
    assert found.ratio("batches") == pytest.approx(60 / 100)
    assert found.ratio("sgd_steps") == pytest.approx((6 / 0.25) / (10 / 0.5))
    assert headline([found])["batches_vs_best_baseline_median"] == 0.6


def test_a_task_that_ours_do_not_reach_is_infinitely_worse():
    found = contest("digits", [trial([0.9] * 6), trial([0.5] * 6, method="kfac")])

    ratios = headline([found])

    assert found.ratio("batches") == math.inf
    assert ratios["batches_vs_best_baseline_worst"] is None
    assert (ratios["tasks_compared"], ratios["tasks_not_reached_by_ours"]) == (1, 1)


def test_first_order_methods_are_compared_with_their_own_target():
    settings = [trial([0.9] * 5, method="soap"), trial([0.8] * 5), trial([0.85] * 5, method="kfac")]

    found = contest("digits", settings)

    assert found.against("first-order").target == pytest.approx(0.795)
    assert found.ratio("batches") == math.inf
    assert headline([found])["batches_vs_best_first_order_worst"] == 1


def test_without_a_whole_trial_of_both_nothing_is_compared():
    only_ours = contest("digits", [trial([0.9] * 6, method="kfac"), trial([0.9] * 3, batches=60)])

    assert only_ours.target is None
    assert headline([only_ours])["tasks_compared"] == 0
