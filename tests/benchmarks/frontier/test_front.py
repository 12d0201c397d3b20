import math

from benchmarks.frontier.front import Contest, Point, headline, least_batches, pareto_front

A, B, C = Point(100, 10.0), Point(50, 20.0), Point(10, 80.0)


def test_the_front_is_what_no_other_point_beats():
    beaten = [Point(100, 11.0), Point(60, 20.0), Point(10, 81.0)]

    assert pareto_front([C, *beaten, B, A]) == [A, B, C]


def test_equal_points_stand_once_in_the_front():
    assert pareto_front([A, A]) == [A]


def test_what_did_not_reach_the_target_is_in_no_front():
    assert pareto_front([Point(math.inf, math.inf)]) == []


def test_the_fewest_batches_within_a_budget():
    assert least_batches([A, B, C], 25.0) == 50
    assert least_batches([A, B, C], 20.0) == 50
    assert least_batches([A, B, C], 9.0) == math.inf


def test_the_headline_compares_bytes_with_the_best_compressed_baseline():
    contests = {
        "one": Contest([Point(10, 5.0)], [A], our_bytes=5.0, compressed_bytes=10.0),
        "two": Contest([Point(10, 8.0)], [A], our_bytes=8.0, compressed_bytes=10.0),
        "three": Contest([Point(10, 20.0)], [A], our_bytes=20.0, compressed_bytes=10.0),
    }

    found = headline(contests)

    assert found["bytes_vs_best_compressed_median"] == 0.8
    assert found["bytes_vs_best_compressed_worst"] == 2.0
    assert found["tasks_compared"] == 3


def test_the_headline_compares_batches_at_the_bytes_of_the_baselines_front():
    ours = [Point(50, 9.0), Point(40, 20.0), Point(20, 70.0)]

    found = headline({"one": Contest(ours, [A, B, C], 9.0, 10.0)})

    # 50 / 100 within 10 bytes, 40 / 50 within 20, 20 / 10 within 80
    assert found["batches_at_equal_bytes_median"] == 0.8
    assert found["budgets_compared"] == 3
    assert found["budgets_only_ours_reach"] == 1


def test_a_budget_that_only_baselines_reach_counts_as_infinite():
    found = headline({"one": Contest([Point(5, 30.0)], [A, B, C], 30.0, 10.0)})

    assert found["batches_at_equal_bytes_median"] is None
    assert found["budgets_only_ours_reach"] == 0


def test_a_missed_target_leaves_no_worst_ratio():
    reached = Contest([Point(10, 5.0)], [A], 5.0, 10.0)
    missed = Contest([Point(10, 5.0)], [A], math.inf, 10.0)

    assert headline({"one": reached, "two": missed})["bytes_vs_best_compressed_worst"] is None


def test_nothing_of_ours_leaves_no_headline():
    found = headline({"one": Contest([], [A, B], math.inf, 10.0)})

    assert found["tasks_compared"] == 0
    assert [name for name, value in found.items() if value is None] == [
        "bytes_vs_best_compressed_median",
        "bytes_vs_best_compressed_worst",
        "batches_at_equal_bytes_median",
    ]
