import pytest
from session_events import committed, joined, report, three_sessions

from benchmarks.shared.watched_training import DeviceBytes, WatchedTraining


@pytest.fixture
def training():
    training = WatchedTraining()
    for event in three_sessions():
        training.apply(event)
    return training


def test_bytes_add_up_over_sessions(training):
    assert training.traffic[1] == DeviceBytes(sent=100, received=80)
    assert training.traffic[2] == DeviceBytes(sent=200, received=160)
    assert {device.received for device in training.statistics.devices.values()} == {300}


def test_bytes_behind_a_step_without_one_of_the_devices_are_not_told(training):
    training.apply(joined("c"))
    training.apply(report("a", 3, 0.0, received=100))
    training.apply(committed(3, 104.0))
    assert 3 not in training.traffic


def test_accuracy_belongs_to_the_batches_before_the_evaluation(training):
    assert training.accuracy == {0: 0.5, 1: 0.6, 2: 0.7}
    assert training.seconds == {1: 1.0, 2: 2.0, 3: 3.0}
    assert training.batches == 3
