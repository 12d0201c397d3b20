"""What a daemon tells of its privacy budget: to whoever asks it, and to Prometheus."""

import pytest
from edgenewton.v1 import device_pb2 as pb
from prometheus_client import CollectorRegistry

from edge_client.cli.daemon import _properties
from edge_client.daemon.metrics import TrainingMetrics
from edge_client.daemon.translation import step_from_proto, step_to_proto
from edge_client.training.work import TrainedStep


@pytest.mark.parametrize("epsilon", [None, 1.25])
def test_a_step_is_told_with_what_was_spent(epsilon):
    step = TrainedStep(3, 0.5, 0.25, 2, epsilon=epsilon)
    assert step_from_proto(step_to_proto(step)) == step
    registry = CollectorRegistry()
    TrainingMetrics(registry).observe(step)
    assert registry.get_sample_value("edgenewton_training_epsilon") == (epsilon or 0.0)


def test_the_status_has_it_while_there_is_a_budget():
    training = pb.TrainingStatus(is_training=True, session="s", step=3, loss=0.25)
    assert dict(_properties(pb.StatusReply(training=training)))["training"] == "step 3 of session 's', loss 0.2500"
    training.epsilon = 1.234
    assert dict(_properties(pb.StatusReply(training=training)))["training"].endswith("loss 0.2500, epsilon 1.23")
