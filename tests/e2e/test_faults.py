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


MASKED = {"secure-aggregation": True}
UNDER_MASKS = FleetSettings(steps=14, quorum=3, codec="int8")
MASKED_CASES = [
    # A device dies that masks: the others' contributions are of no use without its own, and the step is lost for all.
    Fault("masked device", device_failpoint="before-send@6", settings=MASKED),
    # One that lost more than is kept for it takes over a state that is sealed for it.
    Fault("masked heal", device_failpoint="before-apply@8", settings=MASKED | {"replay-bytes": 0}),
    Fault("masked coordinator", coordinator_failpoint="before-commit@6", settings=MASKED),
    Fault("all masked", at_step=7, action=lambda fleet: fleet.kill_all(with_coordinator=False), settings=MASKED),
]


@pytest.mark.parametrize("fault", MASKED_CASES, ids=lambda fault: fault.name)
def test_a_fault_under_masks_loses_no_step_that_a_device_has_taken(tmp_path, fault):
    outcome = Fleet(tmp_path, UNDER_MASKS, fault).run(deadline_s=120)
    assert_nothing_lost(outcome)
    assert outcome.restarts == (3 if fault.name == "all masked" else 1)
    log = (tmp_path / "coordinator.log").read_text()
    assert "that mask what they send" in log
    assert ("its state is not the session's" in log) == (fault.name == "masked heal")


def test_a_device_that_drifts_under_masks_is_found_and_heals(tmp_path):
    outcome = Fleet(tmp_path, UNDER_MASKS, Fault("drift", diverge_at=6, settings=MASKED)).run(deadline_s=120)
    assert_nothing_lost(outcome)
    assert outcome.restarts == 0
    assert "device 'device-1' diverged: before step 8" in (tmp_path / "coordinator.log").read_text()
