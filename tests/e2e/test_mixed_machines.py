"""Unlike machines in one session, as real processes: another instruction set, two threads, bfloat16 autocast."""

from dataclasses import replace

import pytest
import torch

from benchmarks.mixed.machines import BASELINE, TWO_THREADS
from benchmarks.mixed.session import run

pytestmark = pytest.mark.processes

STEPS = 60


def test_unlike_machines_train_together_and_nobody_heals():
    settings = {"steps": STEPS, "cadence": "every-batch", "seed": 0}
    outcome = run("unlike", (TWO_THREADS, replace(BASELINE, uses_bfloat16=True)), settings)
    assert outcome.heals == []
    assert outcome.left_out == 0
    assert outcome.drift["d0, two threads"][-1][0] == STEPS
    has_other_instructions = torch.backends.cpu.get_cpu_capability() != "DEFAULT"
    assert (outcome.largest_drift > 0) == has_other_instructions
    assert min(outcome.accuracies) > 0.9
