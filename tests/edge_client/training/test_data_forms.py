"""Training on data in all the forms that people have them in, alone and with other devices."""

import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from own_data import OwnData, Pairs, Sensor, samples
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset
from typer.testing import CliRunner

from coordinator.serving.server import embedded_coordinator
from coordinator.session.settings import SessionSettings
from edge_client import GradientExchange
from edge_client.cli import app
from edge_client.tasks import DataError, Samples
from edge_client.training.batches import StreamEndedError, source_of
from edge_client.training.checkpoint import DeviceCheckpoint
from edge_client.training.run import Saving, train_in_session
from edge_client.training.settings import TrainSettings
from edge_client.training.trainer import Trainer

SETTINGS = TrainSettings(task="own_data:OwnData", batch_size=8, steps=6)


@pytest.fixture
def give(monkeypatch):
    """Let the task give data: what a function returns for a partition, or the same for all."""

    def to(train=None, test=None):
        for name, data in (("train", train), ("test", test)):
            if data is not None:
                of = data if callable(data) else lambda _, data=data: data
                monkeypatch.setattr(OwnData, name, staticmethod(of))

    return to


def pairs(of):
    return TensorDataset(of.inputs, of.targets)


def batches_of(source, count, first=0):
    return [source.batch(step) for step in range(first, first + count)]


FORMS = {
    "samples": lambda of: of,
    "data set": pairs,
    "stream": Sensor,
    "loader": lambda of: DataLoader(pairs(of), batch_size=8, shuffle=True),
    "loader of a stream": lambda of: DataLoader(Sensor(of), batch_size=8),
    "iterable of batches": lambda of: list(DataLoader(pairs(of), batch_size=8)),
    "own collation": lambda of: DataLoader(
        [{"x": x, "y": y} for x, y in pairs(of)],
        batch_size=8,
        collate_fn=lambda rows: Samples(torch.stack([r["x"] for r in rows]), torch.stack([r["y"] for r in rows])),
    ),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("scope", ["shared", "probe"])
def test_data_of_every_form_are_trained_on(give, form, scope):
    give(form(samples(40)), form(samples(20, seed=99)))
    trainer = Trainer(SETTINGS.model_copy(update={"curvature_scope": scope, "cadence": "every-batch"}))
    before = trainer.evaluate()
    report = trainer.train(12)
    after = trainer.evaluate()
    assert (report.steps, report.samples) == (12, 96)
    assert before.samples == after.samples == 20
    assert after.loss < 0.75 * before.loss


def test_held_out_data_are_tried_some_at_a_time(give, monkeypatch):
    give(test=samples(1000, seed=1))
    trainer = Trainer(SETTINGS)
    at_once, sizes = trainer.evaluate(), []
    trainer.model.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    assert trainer.evaluate() == at_once
    assert sizes == [256, 256, 256, 232]
    monkeypatch.setattr("edge_client.training.evaluation.BATCH", 7)
    in_parts = trainer.evaluate()
    assert (in_parts.correct, in_parts.samples) == (at_once.correct, at_once.samples)
    assert in_parts.loss == pytest.approx(at_once.loss, rel=1e-5)


def test_a_data_set_is_gone_on_from_at_any_step():
    data = Pairs(samples(20))
    whole = batches_of(source_of(OwnData(), data, 8, seed=3), 5)
    again = batches_of(source_of(OwnData(), data, 8, seed=3), 2, first=3)
    assert all(torch.equal(one.inputs, other.inputs) for one, other in zip(whole[3:], again, strict=True))
    # in memory they have the same order
    held = batches_of(source_of(OwnData(), samples(20), 8, seed=3), 5)
    assert all(torch.equal(one.inputs, other.inputs) for one, other in zip(whole, held, strict=True))


def test_a_stream_goes_on_with_its_next_sample_whatever_the_step_is():
    of = samples(40)
    source = source_of(OwnData(), Sensor(of), 8, seed=0)
    first, second = source.batch(0), source.batch(7)
    assert torch.equal(torch.cat([first.inputs, second.inputs]), of.inputs[:16])
    assert source.samples == 0  # a stream does not say how many it has


def test_a_stream_that_ends_is_begun_anew_and_told_the_pass():
    data = Sensor(samples(20))
    source = source_of(OwnData(), DataLoader(data, batch_size=8), 8, seed=0)
    assert [len(batch) for batch in batches_of(source, 6)] == [8, 8, 4] * 2
    assert data.passes == [0, 1]


def test_a_shuffled_loader_follows_the_devices_seed_and_leaves_the_generators_alone():
    def order(seed, first=0):
        loader = DataLoader(pairs(samples(40)), batch_size=8, shuffle=True)
        return torch.cat([b.inputs for b in batches_of(source_of(OwnData(), loader, 8, seed), 10, first)])

    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    one, same, other, later = order(1), order(1), order(2), order(1, first=5)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert not torch.equal(one, later)  # after a restart, another order than from the beginning
    assert not torch.equal(one[:40], one[40:])
    assert torch.equal(one[:40].sort(dim=0).values, one[40:].sort(dim=0).values)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])
    assert random.getstate() == states[2]


def test_inputs_that_a_probe_measured_are_trained_on_later():
    of = samples(80)
    source = source_of(OwnData(), Sensor(of), 8, seed=0)
    assert torch.equal(source.some_inputs(), of.inputs[:32])
    assert torch.equal(torch.cat([b.inputs for b in batches_of(source, 6)]), of.inputs[:48])


# ---------------------------------------------------------------------- little data, and none


def test_a_device_with_little_data_has_them_all_in_each_batch(give):
    give(samples(3))
    trainer = Trainer(SETTINGS)
    seen = []
    trainer.model.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    assert trainer.train(4).samples == 12
    assert set(seen) == {3}


@pytest.mark.parametrize(
    "empty",
    [samples(0), pairs(samples(0)), Sensor(samples(0)), DataLoader(pairs(samples(0)), batch_size=2), [], iter([])],
    ids=["samples", "data set", "stream", "loader", "list", "iterator"],
)
def test_a_device_without_samples_is_refused_by_name(give, empty):
    give(empty)
    with pytest.raises(DataError, match=r"^device 3 of 8 has no training samples: .*task 'own-data'"):
        Trainer(SETTINGS, index=2, count=8).train(1)


def test_without_held_out_samples_nothing_is_told_of_them(give):
    give(test=samples(0))
    trainer = Trainer(SETTINGS.model_copy(update={"evaluate_every": 1}))
    told = []
    trainer.join()
    complete = trainer.plan._membership.complete
    trainer.plan._membership.complete = lambda loss, evaluation, *rest: (
        told.append(evaluation),
        complete(loss, evaluation, *rest),
    )
    trainer.train(2)
    assert told == [None, None]
    result = trainer.evaluate()
    assert (result.correct, result.samples) == (0, 0)
    assert np.isnan(result.accuracy)
    assert np.isnan(result.loss)
    outcome = CliRunner().invoke(app, ["train", "-c", "task=own_data:OwnData", "-c", "steps=1"])
    assert "no held-out samples" in outcome.output


# ---------------------------------------------------------------------- what fails


GOOD = tuple(vars(samples(8)).values())


class Dies:
    """A batch or more, and then an exception."""

    def __init__(self, batches=1):
        self._batches = batches

    def __iter__(self):
        yield from [GOOD] * self._batches
        raise OSError("the disk is gone")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (Dies(), "batch 2 of the training data of task 'own-data' could not be loaded: OSError: the disk is gone"),
        ([GOOD, {"x": 1}], r"batch 2 .* is of type dict; expected is a pair of tensors, inputs \[n, 4\] and targets"),
        ([GOOD, GOOD[0]], "batch 2 .* is of type Tensor; expected is a pair"),
        ([GOOD, (*GOOD, 1)], r"batch 2 .* has 3 parts \(Tensor, Tensor, int\); expected is a pair"),
        ([GOOD, (GOOD[0][:, :3], GOOD[1])], r"batch 2 .* has inputs \[8, 3\] and targets \[8\]; expected .* \[n, 4\]"),
        ([GOOD, (GOOD[0], GOOD[1][:5])], r"batch 2 .* has inputs \[8, 4\] and targets \[5\]"),
        ([GOOD, (GOOD[0][:0], GOOD[1][:0])], "batch 2 .* has no samples"),
        (3, "training data of task 'own-data' cannot be iterated: TypeError"),
        (Pairs(Samples(torch.zeros(9, 2), torch.zeros(9))), r"batch 1 .* has inputs \[8, 2\]"),
    ],
)
def test_bad_data_are_named(give, data, message):
    give(data)
    with pytest.raises(DataError, match=message):
        Trainer(SETTINGS).train(3)


def test_a_worker_that_dies_is_named(give):
    loader = DataLoader(Sensor(samples(40), fails_at=17), batch_size=8, num_workers=1)
    give(loader)
    with pytest.raises(DataError, match=r"batch 3 of the .* could not be loaded: OSError: the sensor does not"):
        Trainer(SETTINGS).train(4)


def test_a_worker_that_is_killed_is_named(give):
    give(DataLoader(Sensor(samples(40), fails_at=17, is_killed=True), batch_size=8, num_workers=1))
    with pytest.raises(
        DataError,
        match=r"of task 'own-data'.* (DataLoader worker \(pid|ancdata|a worker of the data loader was killed)",
    ):
        Trainer(SETTINGS).train(4)


def test_workers_need_what_can_be_pickled(give):
    give(DataLoader(Sensor(samples(8)), collate_fn=lambda rows: rows, num_workers=1))
    with pytest.raises(DataError, match=r"cannot be iterated: .*pickle.*; workers do not share this process's memory"):
        Trainer(SETTINGS).train(1)


def test_held_out_data_are_to_be_had_again_and_again(give):
    give(test=iter([GOOD]))
    with pytest.raises(DataError, match="the held-out data of task 'own-data' can be gone through once only"):
        Trainer(SETTINGS)


def test_a_device_alone_keeps_what_it_learnt_before_its_data_ended(give, tmp_path):
    give(lambda _: iter([GOOD] * 3))
    trainer = Trainer(SETTINGS)
    report = trainer.train(5)
    assert (report.steps, report.step) == (3, 3)
    assert "the training data of task 'own-data' ended after 3 batches on device 1 of 1" in report.ended
    with pytest.raises(StreamEndedError):
        trainer.train_batch()
    path = tmp_path / "model.pt"
    result = CliRunner().invoke(app, ["train", "-c", "task=own_data:OwnData", "-c", "steps=5", "--output", str(path)])
    assert result.exit_code == 0
    assert "ended after 3 batches" in " ".join(result.output.split())
    assert path.exists()


# ---------------------------------------------------------------------- augmentation and weights


def test_augmentation_changes_training_alone_and_follows_the_step(give, monkeypatch):
    seen = []

    def augment(self, inputs, generator):
        seen.append(inputs + torch.randn(inputs.shape, generator=generator))
        return seen[-1]

    monkeypatch.setattr(OwnData, "augment", augment)
    whole = Trainer(SETTINGS)
    whole.train(4)
    first, seen[:] = list(seen), []
    half = Trainer(SETTINGS)
    half.train(2)
    Trainer(SETTINGS, weights=half.model.state_dict(), state=half.state_dict()).train(2)
    assert all(torch.equal(one, other) for one, other in zip(first, seen, strict=True))
    assert not torch.equal(first[0], first[1])
    seen.clear()
    whole.evaluate()
    assert not seen
    monkeypatch.setattr(OwnData, "augment", lambda self, inputs, generator: inputs[1:])
    with pytest.raises(DataError, match=r"augment of task 'own-data' gave \[7, 4\] for inputs \[8, 4\]"):
        Trainer(SETTINGS).train(1)


# ---------------------------------------------------------------------- with other devices


def run_session(devices, *, steps=6, quorum=None, settings=SETTINGS, **session):
    """Train devices in a session of a real coordinator; return each one's outcome, or what it raised."""

    def train(index):
        return train_in_session(
            "s",
            settings,
            index,
            devices,
            until_step=steps,
            connect=lambda: GradientExchange.connect(coordinator.address, session="s", device=f"d{index}"),
        )

    limits = {"rejoin_deadline_s": 0, "codec": "fp32"} | session
    with embedded_coordinator() as coordinator, ThreadPoolExecutor(devices) as pool:
        coordinator.create_session("s", SessionSettings(devices=devices, quorum=quorum, **limits))
        runs = [pool.submit(train, index) for index in range(devices)]
        return [run.exception() or run.result() for run in runs]


def test_devices_with_data_of_unlike_forms_train_together(give):
    loader = DataLoader(Sensor(samples(30, seed=2)), batch_size=5, num_workers=1)
    give(lambda partition: (samples(40), samples(3, seed=1), loader)[partition.index])
    outcomes = run_session(3, settings=SETTINGS.model_copy(update={"cadence": "every-batch"}))
    digests = {outcome.report.weights_digest for outcome in outcomes}
    assert len(digests) == 1
    assert [outcome.report.samples for outcome in outcomes] == [48, 18, 30]


def test_a_small_batch_weighs_its_samples(give):
    """The mean of a step is that over all samples of all devices."""
    parts = [samples(8), samples(3, seed=1)]
    give(lambda partition: parts[partition.index])
    settings = SETTINGS.model_copy(update={"cadence": "every-batch"})
    outcomes = run_session(2, steps=1, settings=settings)
    union = Samples(*(torch.cat([getattr(part, name) for part in parts]) for name in ("inputs", "targets")))
    give(union)
    trainer = Trainer(settings.model_copy(update={"batch_size": 11}))
    expected = cross_entropy(trainer.model(union.inputs), union.targets).item()
    assert trainer.train_batch().loss == pytest.approx(expected)
    for name, tensor in trainer.model.state_dict().items():
        torch.testing.assert_close(tensor, outcomes[0].state.model[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("cadence", ["every-batch", "local-steps"])
@pytest.mark.parametrize("data", [lambda: Dies(5), lambda: iter([GOOD] * 5)], ids=["dies", "ends"])
def test_others_go_on_without_a_device_whose_data_fail(give, cadence, data):
    give(lambda partition: data() if partition.index == 2 else samples(40, seed=partition.index))
    settings = SETTINGS.model_copy(update={"cadence": cadence, "local_steps": 2})
    *others, failed = run_session(3, steps=8, quorum=2, settings=settings)
    assert [outcome.report.step for outcome in others] == [8, 8]
    text = failed.report.ended if not isinstance(failed, Exception) else str(failed)
    assert "training data of task 'own-data'" in text
    assert others[0].report.weights_digest == others[1].report.weights_digest


def test_a_session_that_needs_every_device_says_whose_data_failed(give):
    give(lambda partition: Dies() if partition.index == 1 else samples(40))
    first, second = run_session(2, settings=SETTINGS.model_copy(update={"cadence": "every-batch"}))
    assert isinstance(second, DataError)
    assert "device 'd1' left" in str(first)
    assert "the disk is gone" in str(first)


def test_a_state_says_where_a_stream_was_left(give, tmp_path):
    give(lambda _: iter([GOOD] * 4))
    kept = []
    outcome = train_in_session("s", SETTINGS, until_step=9, saving=Saving(kept.append))
    assert outcome.report.ended
    assert DeviceCheckpoint.parse(kept[-1].dump()).step == 4
