"""Which plan the settings make."""

import math

import pytest
import torch

from edge_client import TrustRegion
from edge_client.curvature.probe import Probe
from edge_client.sync import EveryBatch, LocalCurvature, LocalSteps, PrivateGradients, PrivateLocalSteps, ProbeCurvature
from edge_client.training.settings import SettingsError, check_settings


class Elsewhere:
    """An exchange with others that is never joined."""

    is_alone = False
    device = "a"


def probe(samples: int) -> Probe:
    return Probe(lambda generator, n: torch.randn(n, 3, generator=generator), torch.nn.functional.cross_entropy)


@pytest.mark.parametrize(
    ("values", "plan", "told"),
    [
        ({}, LocalSteps, {"local_steps": "auto", "curvature_scope": "blend", "probe_share": 0.5}),
        ({"cadence": "auto", "curvature-scope": "local"}, LocalSteps, {"curvature_scope": "local"}),
        ({"cadence": "local-steps", "local-steps": 7}, LocalSteps, {"local_steps": 7, "curvature_scope": "blend"}),
        ({"cadence": "local-steps", "outer-lr": 0.7, "outer-momentum": 0.6}, LocalSteps, {"outer_lr": 0.7}),
        ({"cadence": "local-steps", "curvature-scope": "shared"}, LocalSteps, {"curvature_scope": "shared"}),
        ({"cadence": "local-steps"}, LocalSteps, {"overlap": False}),
        ({"cadence": "local-steps", "overlap": True}, LocalSteps, {"overlap": True}),
        ({"overlap": True}, LocalSteps, {"local_steps": "auto", "overlap": True}),
        ({"cadence": "every-batch", "whiten": True}, EveryBatch, {"whiten": True}),
        ({"cadence": "local-steps", "curvature-scope": "probe"}, LocalSteps, {"curvature_scope": "probe"}),
        ({"cadence": "every-batch"}, EveryBatch, {"curvature_scope": "shared"}),
        ({"cadence": "every-batch", "curvature-scope": "local"}, LocalCurvature, {"sync_every": 10}),
        ({"cadence": "every-batch", "curvature-scope": "probe", "probe-samples": 8}, ProbeCurvature, {"whiten": False}),
    ],
)
def test_settings_make_a_plan_that_tells_all_devices_what_it_is(values, plan, told):
    made = check_settings(values).plan(Elsewhere(), 0, probe)
    assert type(made) is plan
    assert told.items() <= dict(made.options).items()


def test_a_device_alone_has_nobody_to_wait_for():
    assert type(check_settings({}).plan()) is EveryBatch
    assert type(check_settings({"overlap": True}).plan()) is EveryBatch


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"cadence": "hourly"}, "setting 'cadence' is 'hourly'"),
        ({"local-steps": 0}, "setting 'local-steps' is 0"),
        ({"probe-share": 1.0}, "setting 'probe-share' is 1.0"),
        ({"outer-momentum": 1.0}, "setting 'outer-momentum' is 1.0"),
        ({"growth": 0.9}, "setting 'growth' is 0.9: it must be at least 1"),
        ({"curvature-scope": "mine"}, "setting 'curvature-scope'"),
    ],
)
def test_impossible_settings_are_named(values, text):
    with pytest.raises(SettingsError, match=text):
        check_settings(values)


def test_settings_that_do_not_suit_each_other_are_named():
    with pytest.raises(SettingsError, match="'blend': an exchange after every batch knows no blend"):
        check_settings({"cadence": "every-batch", "curvature-scope": "blend"}).plan(Elsewhere(), 0, probe)
    with pytest.raises(SettingsError, match="'whiten' is for gradients: that needs the cadence 'every-batch'"):
        check_settings({"cadence": "local-steps", "whiten": True}).plan(Elsewhere(), 0, probe)
    with pytest.raises(SettingsError, match="'overlap' is for rounds of local steps: the cadence is 'every-batch'"):
        check_settings({"cadence": "every-batch", "overlap": True}).plan(Elsewhere(), 0, probe)
    with pytest.raises(SettingsError, match="'curvature-scope' is 'probe': that needs a task"):
        check_settings({"cadence": "local-steps", "curvature-scope": "probe"}).plan(Elsewhere())


PRIVATE = {"cadence": "local-steps", "epsilon": 4.0, "clip-norm": 0.5, "noise-devices": 8, "steps": 65}


def test_a_privacy_budget_lasts_for_the_exchanges_of_the_run():
    made = check_settings({**PRIVATE, "outer-momentum": 0.9}).plan(Elsewhere(), 500, probe)
    assert type(made) is PrivateLocalSteps
    expected = {"privacy_epsilon": 4.0, "privacy_delta": 1e-5, "privacy_exchanges": 7, "curvature_scope": "local"}
    assert {**expected, "outer_momentum": 0.9}.items() <= dict(made.options).items()


def test_a_privacy_budget_of_gradients_lasts_for_all_steps_or_for_the_passes_of_a_sample():
    made = check_settings({**PRIVATE, "cadence": "every-batch"}).plan(Elsewhere(), 500, probe)
    assert type(made) is PrivateGradients
    assert {
        "privacy_exchanges": 65,
        "privacy_unit": "device",
        "curvature_scope": "probe",
    }.items() <= made.options.items()
    values = {**PRIVATE, "cadence": "every-batch", "privacy-unit": "sample", "passes": 5}
    made = check_settings(values).plan(Elsewhere(), 500, probe)
    assert {"privacy_exchanges": 5, "privacy_batch_size": 32}.items() <= dict(made.options).items()


def test_what_the_user_leaves_open_suits_noised_gradients():
    values = {**PRIVATE, "cadence": "every-batch"}
    options = check_settings(values).optimizer_options(is_alone=False)
    assert (options["lr"], options["momentum"], options["averaging"].decay) == (1.8, 0.0, 0.9)
    assert options["trust"] == TrustRegion(0.6, 0.1, math.inf, math.inf)
    own = {**values, "lr": 0.5, "damping": 0.1, "momentum": 0.3, "averaging": 0.5, "shrink-after": 20}
    options = check_settings(own).optimizer_options(is_alone=False)
    assert (options["lr"], options["momentum"], options["averaging"].decay) == (0.5, 0.3, 0.5)
    assert options["trust"] == TrustRegion(0.1, 0.1, math.inf, 20.0)
    plain = check_settings({**PRIVATE, "cadence": "local-steps"}).optimizer_options(is_alone=False)
    assert plain["lr"] is None


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"clip-norm": "never"}, "'epsilon' is 4: a privacy budget needs 'clip-norm'"),
        ({"noise-devices": "never"}, "needs 'noise-devices'"),
        ({"cadence": "auto"}, "needs the cadence 'every-batch' or 'local-steps'"),
        ({"cadence": "every-batch", "curvature-scope": "shared"}, "'curvature-scope' is 'shared': .* 'probe'"),
        ({"cadence": "every-batch", "clip-grad-norm": 1}, "'clip-grad-norm' does not go with a privacy budget"),
        ({"cadence": "every-batch", "whiten": True}, "'whiten' does not go with a privacy budget"),
        ({"passes": 3}, "'passes' is for the privacy unit 'sample'"),
        ({"privacy-unit": "sample", "passes": 3}, "'privacy-unit' is 'sample': .* cadence 'every-batch'"),
        ({"cadence": "every-batch", "privacy-unit": "sample"}, "it needs 'passes'"),
        (
            {"cadence": "every-batch", "privacy-unit": "sample", "passes": 4},
            "'passes' is 4: 65 steps take more of this device's 500 samples in batches of 32; take 5 passes",
        ),
        ({"privacy-unit": "batch"}, "setting 'privacy-unit'"),
        ({"overlap": True}, "'overlap' does not go with a privacy budget"),
        ({"personal": "head*"}, "'personal' does not go with a privacy budget"),
        ({"whiten": True}, "'whiten' does not go with a privacy budget"),
        (
            {"epsilon": "never", "clip-norm": "never", "noise-devices": "never", "passes": 3},
            "'passes' is for a privacy",
        ),
        ({"epsilon": "never"}, "'clip-norm' is for a privacy budget: set 'epsilon'"),
        ({"epsilon": "never", "clip-norm": "never"}, "'noise-devices' is for a privacy budget: set 'epsilon'"),
        ({"epsilon": 0}, "setting 'epsilon'"),
        ({"delta": 1}, "setting 'delta'"),
        ({"noise-devices": 1}, "setting 'noise-devices'"),
    ],
)
def test_settings_that_no_privacy_budget_bears_are_refused_by_name(values, text):
    with pytest.raises(SettingsError, match=text):
        check_settings({**PRIVATE, **values}).plan(Elsewhere(), 500, probe)


def test_a_device_alone_has_no_use_for_a_privacy_budget():
    with pytest.raises(SettingsError, match="trains alone"):
        check_settings(PRIVATE).plan()
