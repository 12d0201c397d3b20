"""Real processes that are killed at named points: nothing is lost, and all devices end with the same bits."""

from dataclasses import replace

import pytest

from benchmarks.faults.fleet import Fault, Fleet, FleetSettings

pytestmark = pytest.mark.processes

SETTINGS = FleetSettings(steps=14)
CASES = [
    Fault("device", device_failpoint="before-apply@6"),
    Fault("coordinator", coordinator_failpoint="mid-broadcast@6"),
    Fault("link", at_step=5, action=lambda fleet: fleet.proxies[1].cut()),
]


def assert_nothing_lost(outcome):
    assert outcome.survived, outcome.problem
    assert outcome.bit_identical
    assert outcome.steps_lost == 0


@pytest.mark.parametrize("fault", CASES, ids=lambda fault: fault.name)
def test_a_fault_loses_no_step(tmp_path, fault):
    outcome = Fleet(tmp_path, SETTINGS, fault).run(deadline_s=120)
    assert_nothing_lost(outcome)
    assert outcome.restarts == (0 if fault.name == "link" else 1)


LOCAL_STEPS = FleetSettings(
    steps=20,  # four rounds; after the first, all know the probe's inputs
    save_every=3,  # in the midst of a round
    codec="int4",
    training={"cadence": "local-steps", "local-steps": "5", "curvature-scope": "blend"},
)


def test_faults_in_rounds_of_local_steps_lose_none(tmp_path):
    """A device dies with a state of the midst of its round, and then the coordinator while it tells of the next."""
    fault = Fault("local steps", device_failpoint="before-apply@5", coordinator_failpoint="mid-broadcast@14")
    outcome = Fleet(tmp_path, LOCAL_STEPS, fault).run(deadline_s=120)
    assert_nothing_lost(outcome)
    assert outcome.restarts == 2


OVERLAP = replace(LOCAL_STEPS, training=LOCAL_STEPS.training | {"overlap": "true"})
OVERLAP_CASES = [
    # A device dies when it has a result, in the midst of the round after; then the coordinator, while it tells of one.
    Fault("in the midst", device_failpoint="before-apply@5", coordinator_failpoint="mid-broadcast@14"),
    # A device dies when it has sent a round, and comes back with a state from before or after that.
    Fault("once sent", device_failpoint="after-send@5", coordinator_failpoint="before-commit@10", save_every=1),
]


@pytest.mark.parametrize("fault", OVERLAP_CASES, ids=lambda fault: fault.name)
def test_faults_while_rounds_are_on_their_way_lose_none(tmp_path, fault):
    outcome = Fleet(tmp_path, OVERLAP, fault).run(deadline_s=120)
    assert_nothing_lost(outcome)
    assert outcome.restarts == 2
