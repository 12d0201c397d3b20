"""Models that other people wrote, trained by the optimizer in an ordinary loop; truth is plain autograd, and SGD."""

import pytest
import torch

from benchmarks.zoo.checks import (
    different,
    loss_after,
    newton,
    not_resumed,
    sgd,
    train,
    wrong_gradients,
)
from benchmarks.zoo.models import CASES
from benchmarks.zoo.two_devices import devices_apart

# Which layers take plain steps is said in a warning; many models have some.
pytestmark = [pytest.mark.zoo, pytest.mark.filterwarnings("ignore::UserWarning")]


every_model = pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in CASES.items()])


@every_model
def test_every_gradient_is_that_of_plain_autograd(case):
    assert wrong_gradients(case) == []


@every_model
def test_thirty_steps_on_a_batch_leave_a_smaller_loss_than_sgd(case):
    assert loss_after(case, newton) < loss_after(case, sgd)


@every_model
def test_two_devices_stay_equal_and_share_the_mean_of_their_gradients(case):
    assert devices_apart(case) == []


@every_model
def test_the_samples_told_are_those_of_the_batch(case):
    model = case.model()
    optimizer = newton(model)
    train(case, model, optimizer, 0)
    assert optimizer.last_result.samples == case.samples


@every_model
def test_a_forward_without_gradients_between_steps_changes_nothing(case):
    check_that_a_forward_changes_nothing(case, torch.no_grad)


@every_model
def test_a_forward_in_evaluation_between_steps_changes_nothing(case):
    check_that_a_forward_changes_nothing(case, torch.enable_grad)


def check_that_a_forward_changes_nothing(case, mode):
    model, undisturbed = case.model(), case.model()
    optimizer, other = newton(model), newton(undisturbed)
    for number in range(3):
        train(case, model, optimizer, number)
        train(case, undisturbed, other, number)
        model.eval()
        with mode():
            case.seeded_loss(model, case.batch_of(100 + number), number)
        model.train()
    assert optimizer.last_result.samples == other.last_result.samples
    assert different(model.state_dict(), undisturbed.state_dict()) == []


@every_model
def test_a_training_that_was_saved_goes_on_bit_for_bit(case):
    assert not_resumed(case) == []
