"""A device that insists on something joins no session that does not give it, and nothing that it trained on leaves."""

import pytest
import torch
from torch import nn

from coordinator.serving.server import embedded_coordinator
from coordinator.session.settings import SessionSettings
from edge_client import EveryBatch, GradientExchange, NewtonOptimizer, PrivacyBudget, PrivateLocalSteps
from edge_client.exchange import ExchangeError
from edge_client.exchange.requirements import RequirementError, Requirements

BUDGET = {"privacy_epsilon": "4.0", "privacy_delta": "1e-05"}


def try_to_train(coordinator, require, plan=EveryBatch):
    with GradientExchange.connect(coordinator.address, session="s", device="d0", require=require) as exchange:
        model = nn.Linear(3, 1)
        optimizer = NewtonOptimizer(model, sync=plan(exchange))
        optimizer.zero_grad()
        model(torch.ones(4, 3)).sum().backward()
        optimizer.step()


@pytest.fixture
def room():
    """A session's room that notes who joins, and what frames come."""
    with embedded_coordinator() as coordinator:

        def opened(**settings):
            coordinator.create_session("s", SessionSettings(devices=2, **settings))
            room = coordinator.directory.find("s")
            room.coordinator, room.frames, room.joined = coordinator, [], []
            read_frame, join = room.read_frame, room.join
            room.read_frame = lambda device, data: room.frames.append(data) or read_frame(device, data)
            room.join = lambda joining, *args: room.joined.append(joining) or join(joining, *args)
            return room

        yield opened


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
def test_a_session_that_does_not_give_it_is_left_before_a_contribution(room, required, settings, text):
    entered = room(**settings)
    with pytest.raises(ExchangeError, match=text):
        try_to_train(entered.coordinator, [required])
    assert not entered.frames
    assert entered.joined[0].training_samples == 0
    assert not entered.session.members


def test_without_a_privacy_budget_nothing_is_told_at_all(room):
    entered = room(secure_aggregation=True)
    with pytest.raises(
        ExchangeError, match=r"insists on epsilon<=4, and .* no privacy budget: .* Set epsilon=4, with clip"
    ):
        try_to_train(entered.coordinator, ["secure-aggregation, epsilon<=4"])
    assert not entered.joined


def test_a_larger_budget_is_refused_and_a_smaller_one_joins(room):
    entered = room()
    budget = PrivacyBudget(epsilon=4, delta=1e-5, clip_norm=0.5, devices=3, exchanges=3)

    def private(exchange):
        return PrivateLocalSteps(exchange, budget, 2)

    with pytest.raises(ExchangeError, match="epsilon=4: set epsilon to 3.5 or less, or insist on epsilon<=4"):
        try_to_train(entered.coordinator, ["epsilon<=3.5"], private)
    assert not entered.joined
    with pytest.raises(ValueError, match="session's quorum is 2"):  # which it was told after it had joined
        try_to_train(entered.coordinator, ["epsilon<=4"], private)
    assert entered.joined


@pytest.mark.parametrize(
    ("required", "options", "text"),
    [
        (["epsilon<=4"], BUDGET, None),
        (["epsilon<=4, delta<=1e-6"], BUDGET, "epsilon<=4 and delta<=1e-06, and .* delta=1e-05: set delta to 1e-06 or"),
        (["epsilon<=4"], BUDGET | {"privacy_delta": "0.001"}, "delta=0.001, which is more than the usual 1e-05"),
        (["epsilon<=4", "delta<=0.01"], BUDGET | {"privacy_delta": "0.001"}, None),
        (["delta<=1e-4"], {}, "insists on delta<=0.0001, and .* no privacy budget"),
        (["epsilon<=8", "epsilon <= 2"], BUDGET, "insists on epsilon<=2"),
        (["epsilon<=4"], BUDGET | {"privacy_unit": "sample"}, "a budget of each sample, .* privacy-unit=device, or"),
        (["sample-epsilon<=4"], BUDGET, "a budget of a device's whole data, .* privacy-unit=sample, or .* epsilon"),
        (["sample-epsilon<=4"], BUDGET | {"privacy_unit": "sample"}, None),
        (["sample-epsilon<=2"], BUDGET | {"privacy_unit": "sample"}, "epsilon to 2 or less, or .* sample-epsilon<=4"),
        (["delta<=1e-4"], BUDGET | {"privacy_unit": "sample"}, None),
        (["epsilon<=4"], BUDGET | {"privacy_epsilon": "nan"}, "no privacy budget"),
        (["secure-aggregation"], {}, None),
    ],
)
def test_the_budget_that_a_device_is_to_train_with_is_measured(required, options, text):
    requirements = Requirements.parse(required)
    if text is None:
        requirements.check_budget(options, "d0")
        return
    with pytest.raises(ExchangeError, match=text):
        requirements.check_budget(options, "d0")


def test_of_several_the_strictest_counts():
    parsed = Requirements.parse(
        ["secure-aggregation>=3, epsilon<=4", "secure-aggregation>=8", "epsilon <=2 delta<=1e-6"]
    )
    assert parsed == Requirements(8, 2.0, 1e-6)
    assert not Requirements.parse([])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("epsilon", "'epsilon' is nothing that can be required: .*epsilon<=E"),
        ("epsilon>=4", "'epsilon>=4' is nothing"),
        ("epsilon<=4, sample-epsilon<=2", "insist on epsilon or on sample-epsilon, not on both"),
        (" ", "' ' is nothing"),
        ("epsilon<=0", "the bound of epsilon is a number above 0"),
        ("epsilon<=e", "the bound of epsilon is a number above 0"),
        ("delta<=1", "the bound of delta is a number between 0 and 1"),
    ],
)
def test_what_cannot_be_required_is_refused_at_once(text, reason):
    with pytest.raises(RequirementError, match=reason):
        GradientExchange.connect("127.0.0.1:1", session="s", device="d0", require=[text])
