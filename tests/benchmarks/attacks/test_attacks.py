"""The benchmark of attacks: what attackers send, that its devices train as real ones do, and what is made of trials."""

import numpy as np
import pytest
import torch

from benchmarks.attacks.attacks import ATTACKS, BY_NAME, NONE, Sent
from benchmarks.attacks.data import Fleet
from benchmarks.attacks.flower import STRATEGIES
from benchmarks.attacks.ours import SimulatedExchange
from benchmarks.attacks.report import headline, losses, means, tables, worst
from benchmarks.attacks.trials import ABSENT, Trial, cases
from edge_client.optim import NewtonOptimizer
from edge_client.sync import EveryBatch
from edge_client.sync.layer_statistics import DOUBTS
from edge_client.training.trainer import build_model

G, A = ("gradient", "w"), ("curvature", "l:A")


def sent(value: float) -> Sent:
    return Sent(32, {G: torch.tensor([value, 1.0]), A: torch.ones(3), DOUBTS: torch.zeros(2)})


def test_attackers_send_what_their_attack_says_and_the_honest_what_they_computed():
    before = [sent(1.0), sent(3.0), sent(5.0), sent(7.0)]
    got = {attack.name: attack.apply(before, 1) for attack in (NONE, *ATTACKS)}
    assert all(of[:3] == before[:3] for of in got.values())
    last = {name: of[3] for name, of in got.items()}
    assert last["gradients x-10"].tensors[G].tolist() == [-70.0, -10.0]
    assert last["x-1, 2^20 samples"].samples == 1 << 20
    assert last["sign flip"].samples == 32
    deviation = np.std([1.0, 3.0, 5.0])
    assert last["a little, z 1.5"].tensors[G].tolist() == pytest.approx([3 - 1.5 * deviation, 1.0])
    assert last["inner product, 5"].tensors[G].tolist() == [-15.0, -5.0]
    assert last["curvature x-10"].tensors[A].tolist() == [-10.0] * 3
    assert last["curvature 1e24"].tensors[A].tolist() == pytest.approx([1e24] * 3)
    assert last["doubts all curvature"].tensors[DOUBTS].tolist() == [1.0, 1.0]
    for name in ("none", "label flip"):
        assert torch.equal(last[name].tensors[G], before[3].tensors[G])
    assert [torch.equal(of.tensors[A], before[3].tensors[A]) for of in last.values()].count(False) == 2


def test_labels_are_flipped_on_the_bad_devices_alone():
    honest = Fleet("digits", "alike", 0, 8, 0, flips_labels=False)
    attacked = Fleet("digits", "alike", 0, 8, 2, flips_labels=True)
    for device in range(8):
        ours, theirs = honest.batch(device, 3)[1], attacked.batch(device, 3)[1]
        assert torch.equal(theirs, 9 - ours if device >= 6 else ours)


def test_simulated_devices_train_as_one_does_on_the_union_of_their_batches():
    fleet = Fleet("digits", "alike", 0, 8, 0, flips_labels=False)
    together, alone = build_model(fleet.task, 0), build_model(fleet.task, 0)
    exchange = SimulatedExchange(8, "mean", NONE, 0)
    simulated = NewtonOptimizer(together, sync=EveryBatch(exchange, overlap=False), lr=0.01)
    reference = NewtonOptimizer(alone, lr=0.01)
    for step in range(2):
        batches = [fleet.batch(device, step) for device in range(8)]
        for inputs, targets in batches:
            simulated.zero_grad()
            fleet.task.loss(together(inputs), targets).backward()
            simulated.step()
        reference.zero_grad()
        fleet.task.loss(alone(torch.cat([x for x, _ in batches])), torch.cat([y for _, y in batches])).backward()
        reference.step()
    moved = 0.0
    initial = build_model(fleet.task, 0).state_dict()
    for name, weight in alone.state_dict().items():
        np.testing.assert_allclose(together.state_dict()[name], weight, atol=2e-4)
        moved = max(moved, float((weight - initial[name]).abs().max()))
    assert moved > 2e-3


@pytest.mark.parametrize("name", STRATEGIES)
def test_flowers_strategies_return_what_all_devices_agree_on(name):
    arrays = [np.arange(6, dtype=np.float32).reshape(2, 3), np.ones(1, np.float32)]
    combined = STRATEGIES[name]([(arrays, 32)] * 8, 1)
    assert all(np.allclose(got, wanted) for got, wanted in zip(combined, arrays, strict=True))


def trial(method: str, attack: str, bad: int, accuracy: float, seed: int = 0) -> Trial:
    return Trial("digits", "alike", method, attack, bad, seed, accuracy, 1.0)


def test_losses_are_those_against_honest_devices_in_points():
    found = means(
        [
            trial("mean", "none", 0, 0.98),
            trial("mean", "none", 0, 1.0, seed=1),
            trial("history", "none", 0, 0.985),
            trial("history", "sign flip", 2, 0.95),
            trial("history", "label flip", 1, 0.97),
            trial("mean", ABSENT, 2, 0.9),
        ]
    )
    assert losses(found, "history", "alike")["digits", "sign flip", 2] == pytest.approx(4.0)
    assert worst(found, "history", "alike") == {
        "loss_under_attack_worst": 4.0,
        "worst_case": {"task": "digits", "attack": "sign flip", "bad": 2},
        "loss_without_attack": 0.5,
    }
    figures = headline(found)
    assert figures["accuracy_loss_under_attack_worst"] == 4.0
    assert figures["accuracy_loss_without_attack"] == 0.5
    assert figures["accuracy_loss_under_attack_worst_skewed"] is None
    assert "| sign flip" in tables(found)
    assert "-, 95.0" in tables(found)


def test_every_rule_is_tried_without_an_attack_and_under_each():
    of_history = [c for c in cases(1) if (c.task, c.spread, c.method) == ("motion", "alike", "history")]
    assert {(c.attack, c.bad) for c in of_history} == {("none", 0)} | {
        (a, b) for a in BY_NAME if a != "none" for b in (1, 2)
    }
    assert not any(c.method == "Bulyan" and c.bad == 2 for c in cases(1))
