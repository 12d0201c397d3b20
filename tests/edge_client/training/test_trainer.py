import pytest
import torch

from edge_client.sync.replica import tensors_digest, weights_digest
from edge_client.training.evaluation import evaluate
from edge_client.training.run import averaged_weights, train_in_session
from edge_client.training.settings import TrainSettings, check_settings
from edge_client.training.trainer import Trainer, build_model, partition_of


@pytest.mark.parametrize("curvature", ["kfac", "eva"])
def test_two_trainers_one_after_the_other_are_one(curvature):
    settings = TrainSettings(steps=6, curvature=curvature)
    whole = Trainer(settings)
    whole.train(6)
    first = Trainer(settings)
    first.train(4)
    second = Trainer(settings, weights=first.model.state_dict(), state=first.state_dict())
    report = second.train(2)
    assert weights_digest(second.model) == weights_digest(whole.model)
    assert report.weights_digest == tensors_digest(averaged_weights(whole)).hex()


def test_a_report_says_what_was_done():
    seen = []
    trainer = Trainer(TrainSettings(batch_size=8), index=1, count=3)
    report = trainer.train(3, on_step=seen.append)
    assert [step.step for step in seen] == [0, 1, 2]
    assert (report.steps, report.samples) == (3, 24)
    assert report.loss == seen[-1].session_loss
    assert seen[0].session_loss == seen[0].loss
    result = trainer.evaluate()
    assert result.samples == 120
    assert 0 <= result.correct <= 120


@pytest.mark.parametrize("averaging", [0, 0.97])
def test_what_comes_of_a_session_is_what_is_evaluated_and_what_the_report_is_of(averaging):
    outcome = train_in_session("s", check_settings({"steps": 12, "averaging": averaging}), until_step=12)
    trainer = outcome.trainer
    trained = build_model(trainer.task, seed=0, weights=outcome.weights)
    held_out = trainer.task.test_data(partition_of(trainer.settings, 0, 1))
    assert evaluate(trained, trainer.task, held_out) == trainer.evaluate()
    assert outcome.report.weights_digest == outcome.state.result == tensors_digest(outcome.weights).hex()
    is_iterate = tensors_digest(outcome.weights) == tensors_digest(outcome.state.model)
    assert is_iterate == (averaging == 0)
    assert outcome.state.gives(outcome.weights)
    assert outcome.state.gives(outcome.state.model) == is_iterate


def test_evaluations_ride_along_at_their_interval():
    trainer = Trainer(TrainSettings(evaluate_every=2))
    sent = []
    join = trainer.exchange.join

    def joined(*arguments):
        place = join(*arguments)
        complete = place.complete
        place.complete = lambda loss, evaluation, told: (sent.append(evaluation), complete(loss, evaluation, told))[1]
        return place

    trainer.exchange.join = joined
    trainer.train(4)
    assert [evaluation is not None for evaluation in sent] == [True, False, True, False]


def test_the_seed_decides_the_weights_and_leaves_torch_alone():
    task = Trainer(TrainSettings()).task
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one, same, other = (build_model(task, seed) for seed in (1, 1, 2))
    assert torch.rand(1) == expected
    assert weights_digest(one) == weights_digest(same) != weights_digest(other)


def test_weights_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="the weights do not fit the model of task 'digits'"):
        Trainer(TrainSettings(), weights={"0.weight": torch.zeros(1)})
