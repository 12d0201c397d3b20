"""All attacks on what a coordinator sees in one mode, and how near they come."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.privacy.analytic import from_factor, from_gradient
from benchmarks.privacy.fleet import DEVICES, Run, mean_image, watched_run
from benchmarks.privacy.matching import ITERATIONS, matched
from benchmarks.privacy.modes import BY_NAME
from benchmarks.privacy.quality import Quality, judge
from edge_client.exchange import TensorKey
from edge_client.tasks import Samples

GRADIENT, FACTOR, MATCHING = "first-layer gradient", "factor A", "gradient matching"
ATTACKS = (GRADIENT, FACTOR, MATCHING)
ONE, ALL = "a device", "the sum"
BATCHES = (1, 8, 32)
_MOST_MATCHED = 64
"""Images that gradients are matched with at most."""


@dataclass(frozen=True)
class Case:
    """What is attacked."""

    network: str
    mode: str
    batch: int


@dataclass(frozen=True)
class Finding(Case):
    """What an attack gave."""

    target: str
    """What a device sends, or the sum that masks leave."""
    attack: str
    images: int
    """Of which what was attacked is made."""
    psnr_db: float
    best_db: float
    ssim: float
    rebuilt: float
    """Part of the images above 20 dB."""
    mean_image_db: float
    mean_image_ssim: float


def attack(case: Case, devices: int = 2, iterations: int = ITERATIONS) -> list[Finding]:
    """Run a session and attack it.

    Args:
        case: which.
        devices: whose contributions are attacked, one by one; what is found are means over them.
        iterations: of gradient matching.

    """
    torch.set_num_threads(1)
    run = watched_run(BY_NAME[case.mode], case.network, case.batch)
    targets = [(ONE, run, run.images_of(device), run.seen_of(device)) for device in range(devices)]
    if run.mode.is_masked:
        first = run.at_first()
        each = [first.images_of(device) for device in range(DEVICES)]
        union = Samples(torch.cat([own.inputs for own in each]), torch.cat([own.targets for own in each]))
        targets.append((ALL, first, union, first.sums()))
    found: dict[tuple[str, str], list[tuple[int, Quality, Quality]]] = {}
    for target, attacked, truth, seen in targets:
        nothing = judge(truth.inputs, truth.inputs[:0], mean_image())
        for name, guesses in _guesses(attacked, seen, truth, iterations):
            quality = judge(truth.inputs, guesses, mean_image())
            found.setdefault((target, name), []).append((len(truth), quality, nothing))
    return [_mean(case, target, name, of) for (target, name), of in found.items()]


def _guesses(
    run: Run, seen: Mapping[TensorKey, Tensor], truth: Samples, iterations: int
) -> Iterator[tuple[str, Tensor]]:
    yield GRADIENT, from_gradient(run, seen, len(truth))
    of_factor = from_factor(run, seen, len(truth))
    if of_factor is not None:
        yield FACTOR, of_factor
    if len(truth) <= _MOST_MATCHED:
        yield MATCHING, matched(run, seen, truth.targets, iterations)


def _mean(case: Case, target: str, name: str, of: list[tuple[int, Quality, Quality]]) -> Finding:
    def mean(values: Iterator[float]) -> float:
        return round(sum(values) / len(of), 3)

    return Finding(
        case.network,
        case.mode,
        case.batch,
        target,
        name,
        of[0][0],
        psnr_db=mean(quality.psnr_db for _, quality, _ in of),
        best_db=max(quality.best_db for _, quality, _ in of),
        ssim=mean(quality.ssim for _, quality, _ in of),
        rebuilt=mean(quality.rebuilt for _, quality, _ in of),
        mean_image_db=mean(nothing.psnr_db for *_, nothing in of),
        mean_image_ssim=mean(nothing.ssim for *_, nothing in of),
    )
