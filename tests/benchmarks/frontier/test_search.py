import pytest

from benchmarks.frontier.interface import Grid
from benchmarks.frontier.search import search

SPACE = {"lr": Grid((1.0, 2.0, 3.0, 4.0, 5.0, 6.0), 2.0), "steps": Grid((10, 20, 40), 10)}


def bowl(options):
    return ((options["lr"] - 5) ** 2 + (options["steps"] - 40) ** 2,)


def test_the_search_walks_to_the_best():
    assert search(SPACE, bowl, trials=12)[0] == {"lr": 5.0, "steps": 40}


def test_the_first_trial_is_the_start():
    assert search(SPACE, bowl, trials=1) == [{"lr": 2.0, "steps": 10}]


def test_every_search_has_the_same_number_of_trials():
    asked = []

    def rank(options):
        asked.append(tuple(options.values()))
        return bowl(options)

    for trials in (1, 5, 10, 18):
        asked.clear()
        assert len(search(SPACE, rank, trials)) == trials
        assert len(asked) == len(set(asked)) == trials


def test_a_space_may_be_smaller_than_the_number_of_trials():
    assert len(search({"lr": Grid((1.0, 2.0), 1.0)}, lambda options: (options["lr"],), trials=10)) == 2
    assert search({}, lambda options: (1.0,), trials=10) == [{}]


def test_the_seed_decides_what_is_tried():
    def flat(options):
        return (0.0,)

    assert search(SPACE, flat, 10, seed=1) == search(SPACE, flat, 10, seed=1)
    assert search(SPACE, flat, 10, seed=1) != search(SPACE, flat, 10, seed=2)


def test_a_grid_holds_its_start():
    with pytest.raises(ValueError, match="3 is not one of"):
        Grid((1.0, 2.0), 3.0)
