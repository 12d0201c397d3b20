import pytest

from benchmarks.long.methods import METHODS
from benchmarks.long.report import figures, tables
from benchmarks.long.results import contest
from benchmarks.long.study import TUNING_TRIALS, Extent, Trials, values_to_try, wanted
from benchmarks.long.trials import Trial

GRID = METHODS["sgd"].grid
BASELINES = ("sgd", "adamw", "soap")


def answer(request, accuracy):
    curve = [[20 * n, accuracy, None, 2.0 * n, 0.0, 1.0 * n] for n in range(1, 6)]
    settings = dict(METHODS[request.method].settings(request.options))
    return Trial(**request._asdict(), end="completed", curve=curve, sgd_step_s=1.0, settings=settings)


def run_all(extent, trials, accuracy=lambda request: 0.5):
    order = []
    while due := wanted(extent, trials):
        order.append(due[0])
        trials.add(answer(due[0], accuracy(due[0])))
    return order


def extent_in(folder, methods=("kfac", *BASELINES), tasks=("digits", "keywords"), seeds=2):
    return Extent(folder, tasks, methods, seeds, batches=100)


@pytest.mark.parametrize(
    ("scores", "further"),
    [((3, 2, 1), GRID[0] / 3), ((1, 2, 3), GRID[2] * 3), ((1, 3, 2), (GRID[1] * GRID[2]) ** 0.5)],
)
def test_one_more_value_is_tried_where_that_is_best(scores, further):
    known = dict(zip(GRID, scores, strict=True))

    assert values_to_try(METHODS["sgd"], known) == [pytest.approx(further, rel=0.05)]
    assert values_to_try(METHODS["sgd"], {**known, 7.0: 0}) == []
    assert values_to_try(METHODS["sgd"], {GRID[1]: 1}) == [GRID[0], GRID[2]]


def test_every_method_has_the_same_budget_and_what_was_tuned_is_used(tmp_path):
    extent = extent_in(tmp_path, tasks=("digits",))
    best = METHODS["adamw"].grid[0]

    order = run_all(extent, Trials(extent), lambda request: 0.9 if request.options.get("lr") == best else 0.5)

    for name in BASELINES:
        tuning = [request for request in order if request.method == name and request.batches == 20]
        whole = [request for request in order if request.method == name and request.batches == 100]
        assert (len(tuning), len(whole)) == (TUNING_TRIALS, 2)
        assert {request.seed for request in whole} == {0, 1}
    assert all(r.options == {"lr": best} for r in order if r.method == "adamw" and r.batches == 100)


def test_all_methods_come_with_the_first_seed_before_any_with_another(tmp_path):
    extent = extent_in(tmp_path)

    order = run_all(extent, Trials(extent), lambda request: {"kfac": 0.9, "soap": 0.8}.get(request.method, 0.5))

    seeds = [request.seed for request in order]
    assert seeds == sorted(seeds)
    first = order[: 2 * (1 + TUNING_TRIALS * len(BASELINES))]
    assert {(r.task, r.method) for r in first} == {(t, m) for t in extent.tasks for m in ("kfac", *BASELINES)}


def test_the_promising_baselines_come_first(tmp_path):
    extent = extent_in(tmp_path, tasks=("digits",))

    order = run_all(extent, Trials(extent), lambda request: {"soap": 0.9, "adamw": 0.8}.get(request.method, 0.5))

    whole = [request.method for request in order if request.batches == 100]
    assert whole == ["kfac", "adamw", "soap", "sgd", "kfac", "adamw", "soap", "sgd"]


def test_the_study_goes_on_where_it_was_stopped(tmp_path):
    extent = extent_in(tmp_path, tasks=("digits",))
    trials = Trials(extent)
    for _ in range(5):
        trials.add(answer(wanted(extent, trials)[0], 0.5))

    assert wanted(extent, Trials(extent)) == wanted(extent, trials)
    assert len(run_all(extent, Trials(extent))) == 2 + len(BASELINES) * (TUNING_TRIALS + 2) - 5


def test_ours_are_run_again_when_a_default_has_changed(tmp_path):
    extent = extent_in(tmp_path, methods=("kfac",), tasks=("digits",), seeds=1)
    trials = Trials(extent)
    (request,) = wanted(extent, trials)
    old = answer(request, 0.5)

    trials.add(Trial(**{**vars(old), "settings": {**old.settings, "kl_clip": "7"}}))
    assert wanted(extent, trials) == [request]

    trials.add(old)
    assert wanted(extent, trials) == []


def test_the_report_says_what_is_missing(tmp_path):
    extent = extent_in(tmp_path, tasks=("digits",))
    trials = Trials(extent)
    for request in wanted(extent, trials):
        trials.add(answer(request, 0.5))
    contests = [contest("digits", [t for m in extent.methods for t in trials.all("digits", m)])]

    text = tables(contests, {"digits": {"sgd": 1}})

    assert "Trials to come: 1 of sgd." in text
    assert "not known yet" in text
    (of_task,) = figures(contests)
    assert of_task["ratios"]["batches"] is None
    assert {setting["method"] for setting in of_task["settings"]} == {"kfac", *BASELINES}
