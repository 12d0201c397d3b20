"""Real processes that are killed at named points: nothing is lost, and all devices end with the same bits."""

import pytest

from benchmarks.faults.fleet import Fault, Fleet, FleetSettings

SETTINGS = FleetSettings(steps=14)
CASES = [
    Fault("device", device_failpoint="before-apply@6"),
    Fault("coordinator", coordinator_failpoint="mid-broadcast@6"),
    Fault("link", at_step=5, action=lambda fleet: fleet.proxies[1].cut()),
]


@pytest.mark.parametrize("fault", CASES, ids=lambda fault: fault.name)
def test_a_fault_loses_no_step(tmp_path, fault):
    outcome = Fleet(tmp_path, SETTINGS, fault).run(deadline_s=120)
    assert outcome.survived, outcome.problem
    assert outcome.bit_identical
    assert outcome.steps_lost == 0
    assert outcome.restarts == (0 if fault.name == "link" else 1)


LOCAL_STEPS = FleetSettings(
    steps=20,  # four rounds; after the first, all know the probe's inputs
    codec="int4",
    training={"cadence": "local-steps", "local-steps": "5", "curvature-scope": "blend"},
)


def test_faults_in_rounds_of_local_steps_lose_none(tmp_path):
    """A device dies with a state of the midst of its round, and then the coordinator while it tells of the next."""
    fault = Fault("local steps", device_failpoint="before-apply@5", coordinator_failpoint="mid-broadcast@14")
    outcome = Fleet(tmp_path, LOCAL_STEPS, fault).run(deadline_s=120)
    assert outcome.survived, outcome.problem
    assert outcome.bit_identical
    assert outcome.steps_lost == 0
    assert outcome.restarts == 2
