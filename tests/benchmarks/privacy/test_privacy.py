"""Attacks on what a coordinator sees, end to end: plain gradients give images away, masked ones do not."""

import math

import numpy as np
import pytest
import torch
from edgenewton.v1 import exchange_pb2 as pb

from benchmarks.privacy.analytic import from_factor, from_gradient
from benchmarks.privacy.attacks import ALL, FACTOR, GRADIENT, ONE, Finding
from benchmarks.privacy.costs import Cost, ratios
from benchmarks.privacy.dropouts import MaskedFleet, drop_outs, survival, survives
from benchmarks.privacy.fleet import mean_image, watched_run
from benchmarks.privacy.matching import matched
from benchmarks.privacy.modes import BY_NAME, MASKED, PLAIN
from benchmarks.privacy.quality import MOST_DB, judge, psnr, ssim
from benchmarks.privacy.report import advantage, best
from benchmarks.privacy.spans import inputs_from_factor, inputs_from_rows

NETWORKS = ("demo CNN", "MLP")


@pytest.mark.parametrize("network", NETWORKS)
def test_a_plain_session_gives_the_image_of_a_batch_of_one_away(network):
    run = watched_run(PLAIN, network, batch=1, devices=2)
    truth, seen = run.images_of(1).inputs, run.seen_of(1)
    assert judge(truth, from_gradient(run, seen, 1), mean_image()).psnr_db > 60
    factor = from_factor(run, seen, 1)
    assert factor is not None
    assert judge(truth, factor, mean_image()).psnr_db > 60


def test_a_plain_mlp_gives_most_images_of_a_batch_of_eight_away():
    run = watched_run(PLAIN, "MLP", batch=8, devices=2)
    assert judge(run.images_of(0).inputs, from_gradient(run, run.seen_of(0), 8), mean_image()).rebuilt >= 0.75


@pytest.mark.parametrize("network", NETWORKS)
def test_no_attack_on_all_that_a_coordinator_sees_of_a_masked_device_beats_the_mean_image(network):
    run = watched_run(MASKED, network, batch=1, devices=2)
    frames = [pb.Frame.FromString(data) for _, data in run.watch.frames]
    ends = [frame.contribution for frame in frames if frame.HasField("contribution")]
    assert len(ends) == 2 * 3
    assert all(math.isnan(end.loss) and len(end.numbers) > 0 for end in ends)
    assert {frame.samples for frame in frames if frame.slices} == {1}
    truth, seen = run.images_of(0), run.seen_of(0)
    nothing = judge(truth.inputs, truth.inputs[:0], mean_image()).psnr_db
    factor = from_factor(run, seen, 1)
    assert factor is not None
    guesses = (from_gradient(run, seen, 1), factor, matched(run, seen, truth.targets, iterations=20))
    for guess in guesses:
        assert judge(truth.inputs, guess, mean_image()).psnr_db <= nothing
    # The attack works: on the sum, which is that of a batch of two, it finds them.
    first = run.at_first()
    truths = torch.cat([first.images_of(device).inputs for device in range(2)])
    assert judge(truths, from_gradient(first, first.sums(), 2), mean_image()).best_db > 30


def test_with_probe_curvature_no_factor_leaves():
    run = watched_run(BY_NAME["probe curvature"], "MLP", batch=1, devices=2)
    assert from_factor(run, run.seen_of(0), 1) is None


def sparse_inputs(count, size, rng):
    values = rng.uniform(0.2, 1, (count, size)) * (rng.random((count, size)) < 0.4)
    return np.hstack([values, np.ones((count, 1))])


def test_inputs_are_found_in_the_space_that_gradients_or_factors_span():
    rng = np.random.default_rng(0)
    inputs = sparse_inputs(5, 60, rng)
    by_rows = inputs_from_rows(rng.normal(size=(30, 5)) @ inputs, 5, low=0, high=2, unit=60, rng=rng)
    by_factor = inputs_from_factor(inputs[:, :-1].T @ inputs[:, :-1] / 5, 5, low=0, high=9, unit=None, rng=rng)
    for wanted in inputs:
        assert np.abs(by_rows - wanted).max(axis=1).min() < 1e-3
        assert np.abs(by_factor - wanted[:-1]).max(axis=1).min() < 1e-3


def test_each_guess_is_taken_for_one_image_and_missing_ones_are_the_mean_image():
    truth = torch.stack([torch.full((1, 8, 8), value) for value in (-1.0, 0.0, 1.0)])
    mean = torch.zeros(1, 8, 8)
    found = judge(truth, truth[[2, 1]], mean)
    assert found.best_db == MOST_DB
    assert found.rebuilt == pytest.approx(2 / 3)
    assert float(psnr(truth[0], mean)) == pytest.approx(10 * math.log10(4))
    assert found.psnr_db == pytest.approx((2 * MOST_DB + 10 * math.log10(4)) / 3)
    noise = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert ssim(noise, noise).tolist() == pytest.approx([1.0, 1.0])
    assert float(ssim(noise[:1], noise[1:])) < 0.5


def test_up_to_a_third_may_drop_out_and_no_more():
    found = survival((3, 6))
    assert found.tried == found.survived == len(list(drop_outs(3))) + len(list(drop_outs(6)))
    assert not survives(MaskedFleet(6), 0, 0, 3)


def finding(mode, target, attack, psnr_db):
    return Finding("MLP", mode, 1, target, attack, 1, psnr_db, psnr_db, 0.5, 0.0, 10.0, 0.4)


def test_the_headline_is_of_the_best_attack():
    findings = [finding("masked", ONE, GRADIENT, 9.0), finding("masked", ONE, FACTOR, 11.0)]
    findings += [finding("masked", ALL, GRADIENT, 50.0), finding("int8", ONE, GRADIENT, 60.0)]
    assert best(findings, "masked", ONE, "MLP", 1) == findings[1]
    assert advantage(findings) == 1.0
    assert advantage(findings[:1]) == 0.0


def test_ratios_are_medians_of_pairs():
    pairs = [(Cost("int8", 1.0, 1.0, 100, 100), Cost("masked", factor, 1.0, 200, 100)) for factor in (1.1, 1.2, 9.0)]
    found = ratios(pairs)
    assert (found.step, found.bytes, found.sent, found.received) == (1.2, 1.5, 2.0, 1.0)
