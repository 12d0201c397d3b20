import pytest
from edgenewton.common.progress import (
    WINDOW_S,
    Best,
    Pace,
    better,
    duration_text,
    progress_text,
    rate_text,
    seconds_left,
)


def pace_of(*batches):
    """Return the pace of batches at times."""
    pace = Pace()
    for count, now in batches:
        pace.add(count, now)
    return pace


def test_the_rate_is_known_once_there_is_something_to_take_it_from():
    assert Pace().per_s(0.0) is None
    pace = Pace()
    for step in range(5):
        pace.add(1, float(step))
        assert pace.per_s(float(step)) is None
    pace.add(1, 5.0)
    assert pace.per_s(5.0) == pytest.approx(1.0)


def test_an_exchange_of_many_batches_counts_them_all():
    pace = pace_of(*((10, 4.0 * time) for time in range(10)))
    assert pace.per_s(36.0) == pytest.approx(2.5)


def test_what_was_a_minute_ago_is_forgotten():
    slow = [(1, float(time)) for time in range(100)]
    fast = [(1, 99 + time / 10) for time in range(1, 10 * int(WINDOW_S) + 10)]
    assert pace_of(*slow, *fast).per_s(fast[-1][1]) == pytest.approx(10.0, rel=0.01)


def test_a_pause_tells_nothing_of_the_rate():
    before = [(1, time / 10) for time in range(100)]
    after = [(1, 500 + time / 10) for time in range(10)]
    pace = pace_of(*before)
    assert pace.per_s(20.0) == pytest.approx(10.0)
    assert pace.per_s(100.0) is None  # it is on
    assert pace_of(*before, *after).per_s(501.0) == pytest.approx(10.0)


def test_exchanges_that_are_always_far_apart_are_no_pauses():
    times = [40.0 * time for time in range(9)] + [400.0]
    assert pace_of(*((100, time) for time in times)).per_s(400.0) == pytest.approx(500 / 240)


def test_memory_is_bounded_however_fast_batches_come():
    pace = pace_of(*((1, time / 1000) for time in range(200_000)))
    assert pace.per_s(200.0) == pytest.approx(1000.0)
    assert len(pace._marks) < 300


def test_a_clock_that_goes_back_harms_nothing():
    pace = pace_of(*((1, float(time)) for time in range(10)), (1, 3.0), *((1, float(time)) for time in range(4, 10)))
    assert pace.per_s(9.0) > 0


def test_the_time_left_is_that_of_the_batches_left():
    assert seconds_left(859, 3000, 7.1) == pytest.approx(2141 / 7.1)
    assert seconds_left(3000, 3000, 7.1) == seconds_left(3001, 3000, 7.1) == 0
    assert seconds_left(859, None, 7.1) is None
    assert seconds_left(859, 3000, None) is None


def test_the_first_of_equal_accuracies_is_the_best():
    best = None
    for step, accuracy in ((0, 0.5), (10, 0.9), (20, 0.9), (30, 0.8)):
        best = better(best, step, accuracy)
    assert best == Best(10, 0.9)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            (859, 3000, 7.1, Best(800, 0.913)),
            "step 859 of 3,000, 5 min left, 7.1 batches/s, best accuracy 91.3% at step 800",
        ),
        ((859, None, 7.1, None), "step 859, 7.1 batches/s"),
        ((859, 3000, None, None), "step 859 of 3,000"),
        ((3000, 3000, 7.1, None), "step 3,000 of 3,000, 7.1 batches/s"),
    ],
)
def test_what_is_not_known_is_not_said(arguments, text):
    assert progress_text(*arguments) == text


def test_numbers_are_as_people_read_them():
    assert [duration_text(s) for s in (0.4, 40, 99.6, 3_000, 7_300, 90_000, 300_000)] == [
        "0 s",
        "40 s",
        "2 min",
        "50 min",
        "2 h 2 min",
        "25 h 0 min",
        "3 d 11 h",
    ]
    assert [rate_text(r) for r in (0.02, 0.25, 7.14, 1_234.5)] == [
        "1.2 batches/min",
        "0.25 batches/s",
        "7.1 batches/s",
        "1,234 batches/s",
    ]
