import json
import math

import pytest

from benchmarks.convergence.learning_tasks import LEARNING_TASKS
from benchmarks.frontier.trials import Trial, TrialStore
from benchmarks.links.candidates import (
    TABLE,
    Candidate,
    best_somewhere,
    candidates,
    promising,
    stored_candidates,
    write_table,
)
from benchmarks.links.configuration import RECIPES
from benchmarks.links.link import LINKS, Link

THIN = (Link(1, 50),) * 4


def trial(method="SOAP, int4", seed=0, end="reached", batches=10, size=1e5, exchanges=10, **options):
    options = options or {"lr": 0.1}
    return Trial("digits", method, options, seed, 800, end, batches, size, exchanges, 0.97, batches * 0.04)


def candidate(method, batches, size, exchanges):
    return Candidate(method, {"lr": 0.1}, batches, size, exchanges, 0.01)


def test_the_estimate_adds_up_computing_round_trips_and_bytes():
    one = candidate("SOAP, int4", batches=100, size=125_000, exchanges=10)
    exchange = 0.05 + 2 * 100_000 / 1e6
    assert one.seconds(THIN, cores=4) == pytest.approx(100 * 0.01 + 10 * exchange, abs=0.1)
    assert one.seconds(THIN, cores=2) - one.seconds(THIN, cores=4) == pytest.approx(1.0), "two devices on each core"
    assert one.seconds((*THIN[:1], *(Link(100, 5),) * 3), cores=4) == one.seconds(THIN, cores=4), "the slowest counts"


def test_a_candidate_is_what_most_seeds_reached():
    found = candidates(
        [
            trial(batches=10),
            trial(seed=1, batches=30),
            trial(seed=2, end="budget"),
            trial(lr=0.2, end="beaten"),
            trial("EdgeNewton, int4"),
        ]
    )
    assert [(one.method, one.batches) for one in found] == [("SOAP, int4", 30)], "no options that fail, and not ours"
    assert found[0].device_s == pytest.approx(0.01)


def test_the_links_decide_what_is_promising_and_no_method_takes_all_places():
    chatty = [candidate("SOAP, int4", 10 + more, 1e6, 10) for more in range(3)]
    frugal = [candidate("MuLoCo, int4", 400 + more, 1e4, 10) for more in range(3)]
    assert [c.method for c in promising(chatty + frugal, THIN, 3, cores=2)] == ["MuLoCo, int4"] * 2 + ["SOAP, int4"]
    fast = promising(chatty + frugal, (Link(100, 5),) * 4, 3, cores=2)
    assert [c.batches for c in fast] == [10, 11, 400]


def test_trials_come_before_the_table(tmp_path):
    table = tmp_path / "options.json"
    write_table({"digits": [candidate("SOAP, int4", 1, 1, 1), candidate("MuLoCo, int4", 2, 2, 2)]}, table)
    store = TrialStore(tmp_path / "digits" / "SOAP, int4.jsonl")
    store.add(trial(batches=12))
    found = {one.method: one.batches for one in stored_candidates("digits", tmp_path, table)}
    assert found == {"SOAP, int4": 12, "MuLoCo, int4": 2}
    assert stored_candidates("keywords", tmp_path, table) == []


def test_the_table_keeps_what_is_best_on_some_links():
    chatty, frugal = candidate("SOAP, int4", 10, 1e6, 10), candidate("SOAP, int4", 400, 1e4, 10)
    assert best_somewhere([chatty, frugal, candidate("SOAP, int4", 500, 1e6, 10)], 1, cores=2) == [frugal, chatty]


def test_the_committed_table_is_of_known_methods_and_tasks():
    for task, found in json.loads(TABLE.read_text()).items():
        assert task in LEARNING_TASKS
        for entry in found:
            one = Candidate(**entry)
            assert one.method in RECIPES
            assert all(math.isfinite(one.seconds(links, 2)) for links in LINKS.values())
