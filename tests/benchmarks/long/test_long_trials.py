import pytest
import torch
from torch import nn

from benchmarks.long.iterate_average import IterateAverage, weight_of
from benchmarks.long.methods import METHODS, cosine
from benchmarks.long.ours import optimizer_options
from benchmarks.long.plots import plot_long
from benchmarks.long.results import contest
from benchmarks.long.trials import Request, TrialStore, run_trial
from edge_client.tasks import load_task


def request(name, batches=3):
    method = METHODS[name]
    return Request("digits", name, {method.tuned: method.grid[1]} if method.tuned else {}, 0, batches)


@pytest.fixture(scope="module")
def trained():
    return {name: run_trial(request(name)) for name in METHODS}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains(trained, name):
    trial = trained[name]
    (point,) = trial.points

    assert (trial.end, point.batches, trial.key) == ("completed", 3, request(name).key)
    assert 0 < max(value for value in (point.plain, point.averaged) if value is not None) <= 1
    assert point.device_s > 0
    assert trial.sgd_step_s > 0


@pytest.mark.parametrize("name", METHODS)
def test_bytes_are_those_of_bf16_gradients_and_of_our_curvature(trained, name):
    gradients = 3 * 2 * sum(p.numel() for p in load_task("digits").model().parameters()) / 1e6
    sent = trained[name].points[-1].megabytes

    if METHODS[name].is_ours:
        assert sent > gradients + 1e-3
    else:
        assert sent == pytest.approx(gradients, abs=1e-4)


def test_a_training_that_leaves_the_finite_numbers_has_diverged():
    trial = run_trial(Request("digits", "sgd", {"lr": 1e30}, 0, 5))

    assert (trial.end, trial.curve) == ("diverged", [])


def test_trials_are_kept(trained, tmp_path):
    TrialStore(tmp_path, "digits", "kfac").add(trained["kfac"])

    (kept,) = TrialStore(tmp_path, "digits", "kfac").all()

    assert kept.points == trained["kfac"].points
    assert kept.settings == trained["kfac"].settings == METHODS["kfac"].settings({})


def test_trials_can_be_drawn(trained, tmp_path):
    plot_long(tmp_path / "long.png", [contest("digits", trained.values())])

    assert (tmp_path / "long.png").stat().st_size > 10_000


def test_the_average_does_not_lag_at_first():
    task = load_task("digits")
    average = IterateAverage(task, torch.device("cpu"))
    model = task.model()
    parameter = next(model.parameters())
    expected = torch.zeros_like(parameter)
    for number in range(20):
        with torch.no_grad():
            parameter.fill_(number)
        average.follow(model)
        expected += weight_of(number) * (number - expected)

    torch.testing.assert_close(next(average.model.parameters()), expected)
    assert (weight_of(1), weight_of(1000)) == (9 / 11, pytest.approx(0.01))


def test_buffers_are_averaged_and_counts_kept():
    class Normed(type(load_task("digits"))):
        def model(self):
            return nn.Sequential(nn.BatchNorm2d(1), super().model())

    task = Normed()
    average = IterateAverage(task, torch.device("cpu"))
    model = task.model()
    for _ in range(3):
        model(torch.randn(4, *task.input_shape))
        average.follow(model)

    assert average.model[0].num_batches_tracked == 3
    assert (average.model[0].running_mean != 0).all()


def test_the_rate_rises_and_falls():
    factor = cosine(100)

    assert [round(factor(step), 3) for step in (0, 4, 5, 52, 99)] == [0.2, 1.0, 1.0, 0.508, 0.0]


def test_options_of_ours_are_named_as_the_optimizer_has_them():
    made = optimizer_options(
        "kfac", {"update_clip": 0.02, "factor_every": 5, "factor_decay": 0.8, "decay": 0.9, "momentum": 0.9}
    )

    assert made["trust"].update_clip == 0.02
    assert made["refresh"].factor_every == 5
    assert made["averaging"].decay == 0.9
    assert (made["curvature"].factor_decay, made["momentum"]) == (0.8, 0.9)
    with pytest.raises(ValueError, match="no option 'clip'"):
        optimizer_options("kfac", {"clip": 1.0})
