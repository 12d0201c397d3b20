import math

import pytest

from benchmarks.links.configuration import OURS
from benchmarks.links.report import best_of_methods, figures, headline, results, speedups, tables
from benchmarks.links.run import Run, RunStore, fastest, key_of
from benchmarks.links.study import limit

THIN, FAST = "1 Mbit/s, 50 ms", "100 Mbit/s, 5 ms"


def run(method, seconds, seed=0, links=THIN, end="reached", **options):
    return Run("digits", links, method, options, "int4", seed, end, 60.0, 800, seconds, 1.0, 100, 10, 5e4, 0.97)


def runs():
    return [
        *[run(OURS.method, seconds, seed) for seed, seconds in enumerate((2.0, 3.0, 9.0))],
        *[run("SOAP, int4", 12.0, seed, lr=0.1) for seed in range(3)],
        *[run("SOAP, int4", 6.0, seed, lr=0.2) for seed in range(3)],
        *[run("SGD, int8", 1.0, seed, end="reached" if not seed else "time", lr=0.1) for seed in range(3)],
        run(OURS.method, 4.0, links=FAST),
        run("SOAP, int4", 2.0, links=FAST, lr=0.1),
    ]


def test_the_fastest_tuned_baseline_is_over_ours():
    found = results(runs())
    assert speedups(found) == {("digits", THIN): 2.0, ("digits", FAST): 0.5}
    assert headline(found) == {"time_speedup_median": 1.25, "time_speedup_worst": 0.5, "cells_compared": 2}


def test_a_method_that_most_seeds_do_not_reach_counts_as_not_reached():
    found = {result.method: result for result in best_of_methods(results(runs())) if result.links == THIN}
    assert found["SGD, int8"].seconds == math.inf
    assert found["SOAP, int4"].options == {"lr": 0.2}
    by_method = {(entry["method"], entry["links"]): entry for entry in figures(found.values())}
    assert by_method["SGD, int8", THIN]["seconds"] is None


def test_ours_that_misses_the_target_counts_and_cells_of_one_side_do_not():
    missed = [run(OURS.method, 60.0, end="time"), run("SOAP, int4", 6.0, lr=0.1)]
    assert headline(results(missed))["time_speedup_worst"] == 0.0
    assert headline(results([run(OURS.method, 2.0)]))["time_speedup_median"] is None


def test_the_table_has_a_row_for_each_method_and_ours_first():
    text = tables(results(runs()), [THIN, FAST])
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert lines[2].startswith(f"| **{OURS.method}** ")
    assert "3.00 s; 100; 50.0" in lines[2]
    assert "not reached (1 of 3 seeds)" in text
    assert lines[-1].split("|")[2].strip() == "2.00"


def test_runs_are_kept_but_failures_and_half_lines_are_run_anew(tmp_path):
    path = tmp_path / "runs.jsonl"
    store = RunStore(path)
    store.add(run(OURS.method, 2.0))
    store.add(run(OURS.method, 0.0, seed=1, end="failed"))
    path.write_text(path.read_text() + '{"task": "dig')
    kept = RunStore(path)
    assert kept.find(key_of("digits", THIN, OURS, 0)) == run(OURS.method, 2.0)
    assert kept.find(key_of("digits", THIN, OURS, 1)) is None
    assert kept.find(key_of("digits", FAST, OURS, 0)) is None


def test_a_run_may_take_several_times_what_the_fastest_took():
    assert limit([], 300.0) == 300.0
    assert limit([run(OURS.method, 30.0), run("SGD, int8", 8.0), run("SOAP, int4", 1.0, end="time")], 300.0) == 40.0
    assert limit([run(OURS.method, 1.0)], 300.0) == 20.0
    assert fastest([]) == math.inf


@pytest.mark.parametrize("seconds", [100.0, 1000.0])
def test_no_run_takes_longer_than_the_limit(seconds):
    assert limit([run(OURS.method, seconds)], 300.0) == 300.0
