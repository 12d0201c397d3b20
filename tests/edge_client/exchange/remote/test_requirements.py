"""A device that insists on something joins no session that does not give it, and nothing that it trained on leaves."""

import pytest
from test_secure_aggregation import model_of, samples_of
from torch import nn

from coordinator.serving.server import embedded_coordinator
from coordinator.session.settings import SessionSettings
from edge_client import EveryBatch, GradientExchange, NewtonOptimizer
from edge_client.exchange import ExchangeError
from edge_client.exchange.requirements import RequirementError


def try_to_train(coordinator, require):
    with GradientExchange.connect(coordinator.address, session="s", device="d0", require=require) as exchange:
        optimizer = NewtonOptimizer(model_of(), sync=EveryBatch(exchange))
        x, y = samples_of(0, 0)
        optimizer.zero_grad()
        nn.functional.cross_entropy(optimizer._model(x), y).backward()
        optimizer.step()


@pytest.mark.parametrize(
    ("required", "settings", "text"),
    [
        (
            "secure-aggregation",
            {},
            "device 'd0' insists on secure-aggregation, and session 's' has no secure aggregation",
        ),
        ("secure-aggregation>=5", {"secure_aggregation": True}, "gives away sums of 2 devices; .* --quorum of 5"),
    ],
)
def test_a_session_that_does_not_give_it_is_left_before_a_contribution(required, settings, text):
    with embedded_coordinator() as coordinator:
        coordinator.create_session("s", SessionSettings(devices=2, **settings))
        room = coordinator.directory.find("s")
        frames, read_frame, joined = [], room.read_frame, []
        room.read_frame = lambda device, data: frames.append(data) or read_frame(device, data)
        join = room.join
        room.join = lambda joining, *args: joined.append(joining) or join(joining, *args)
        with pytest.raises(ExchangeError, match=text):
            try_to_train(coordinator, [required])
        assert not frames
        assert joined[0].training_samples == 0
        assert not room.session.members


def test_what_cannot_be_required_is_refused_at_once():
    with pytest.raises(RequirementError, match="'epsilon' is nothing that can be required: secure-aggregation, or"):
        GradientExchange.connect("127.0.0.1:1", session="s", device="d0", require=["epsilon"])
