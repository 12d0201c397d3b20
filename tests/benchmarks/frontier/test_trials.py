from dataclasses import replace
from math import inf

import pytest
import torch

from benchmarks.frontier.front import Point
from benchmarks.frontier.interface import DivergedError, Grid, Method, Round, Run
from benchmarks.frontier.study import Extent, study
from benchmarks.frontier.trials import TrialStore, is_beaten, run_trial

TRIALS = []


class Scripted(Run):
    """Knows the digits after so many batches as its option says, and diverges for the option 0."""

    def __init__(self, model, options):
        self._model = torch.nn.Sequential(model)
        self._left = options["after"]
        self._bytes = options["bytes"]
        TRIALS.append(dict(options))

    def round(self):
        if self._left == 0:
            raise DivergedError
        self._left -= 1
        return Round(1, self._bytes, self._bytes)

    @property
    def model(self):
        return Knowing() if self._left <= 0 else self._model


class Knowing(torch.nn.Module):
    def forward(self, x):
        from benchmarks.convergence.trials import learning_task

        return torch.nn.functional.one_hot(learning_task("digits").test.targets, 10).float()


METHOD = Method(
    "scripted",
    "baseline",
    True,
    lambda model, task, options, seed: Scripted(model, options),
    {"after": Grid((0, 2, 3, 8), 3), "bytes": Grid((1, 5), 5)},
)


@pytest.fixture(autouse=True)
def _counted():
    TRIALS.clear()


def test_a_trial_ends_at_the_target():
    trial = run_trial("digits", METHOD, {"after": 3, "bytes": 5}, 0, budget=10)

    assert (trial.end, trial.point) == ("reached", Point(3, 15.0))


def test_a_trial_ends_with_its_budget():
    trial = run_trial("digits", METHOD, {"after": 8, "bytes": 5}, 0, budget=4)

    assert (trial.end, trial.batches, trial.point) == ("budget", 4, Point(inf, inf))


def test_a_trial_ends_when_it_has_diverged():
    assert run_trial("digits", METHOD, {"after": 0, "bytes": 5}, 0, budget=4).end == "diverged"


def test_a_trial_goes_on_while_it_may_be_on_the_front():
    options = {"after": 8, "bytes": 5}

    assert run_trial("digits", METHOD, options, 0, 10, [Point(3, 100.0), Point(100, 3.0)]).end == "reached"
    beaten = run_trial("digits", METHOD, options, 0, 10, [Point(3, 20.0)])
    assert (beaten.end, beaten.batches) == ("beaten", 4)


def test_beaten_means_in_both():
    assert is_beaten(Point(5, 5.0), [Point(5, 5.0)])
    assert not is_beaten(Point(5, 5.0), [Point(4, 6.0), Point(6, 4.0)])


def test_the_store_keeps_trials_and_forgets_half_a_line(tmp_path):
    path = tmp_path / "digits" / "scripted.jsonl"
    trial = run_trial("digits", METHOD, {"after": 3, "bytes": 5}, 0, budget=10)
    TrialStore(path).add(trial)
    path.write_text(path.read_text() + '{"task": "dig')

    assert TrialStore(path).find(trial.key, 1000, []) == trial


def test_a_trial_that_was_given_up_is_run_again_where_more_is_granted(tmp_path):
    store = TrialStore(tmp_path / "a.jsonl")
    given_up = run_trial("digits", METHOD, {"after": 8, "bytes": 5}, 0, budget=4)
    store.add(given_up)
    assert store.find(given_up.key, 4, []) == given_up
    assert store.find(given_up.key, 5, []) is None

    store.add(replace(given_up, end="beaten", budget=100))
    assert store.find(given_up.key, 100, []) is None
    assert store.find(given_up.key, 100, [Point(2, 2.0)]) is not None


def test_a_study_goes_on_where_it_was_stopped(tmp_path):
    extent = Extent(tmp_path, trials=5, seeds=3, budget_factor=0.05, is_stored=False)
    found = study(extent, "digits", METHOD)
    ran = len(TRIALS)

    assert found is not None
    assert found.chosen.options == {"after": 2, "bytes": 1}
    assert (found.chosen.seeds_reached, found.chosen.seeds) == (3, 3)
    assert ran == 5 + 2
    assert study(extent, "digits", METHOD) == found
    assert study(replace(extent, is_stored=True), "digits", METHOD) == found
    assert len(TRIALS) == ran


def test_a_study_that_has_only_begun_can_be_told(tmp_path):
    stored = Extent(tmp_path, 10, 3, 1.0, is_stored=True)
    assert study(stored, "digits", METHOD) is None

    stored.store("digits", METHOD).add(run_trial("digits", METHOD, {"after": 3, "bytes": 5}, 0, budget=10))

    found = study(stored, "digits", METHOD)
    assert found is not None
    assert (found.points, found.chosen.seeds) == ([Point(3, 15.0)], 1)
