"""Personal layers in runs: what a device's state keeps, and what the server never sees."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from edgenewton.common.options import OptionError

from coordinator.serving.server import embedded_coordinator
from coordinator.session.settings import SessionSettings
from edge_client.curvature.probe import Probe
from edge_client.training.checkpoint import DeviceCheckpoint
from edge_client.training.jobs import DeviceData, evaluate_weights, read_weights
from edge_client.training.own_process import OwnProcess
from edge_client.training.settings import SettingsError, check_settings, parse_settings
from edge_client.training.trainer import Trainer, build_model
from edge_client.training.work import DataRequest, TrainRequest, WorkError

HEAD = {"output.weight", "output.bias"}
RUN = {"personal": "output", "cadence": "every-batch", "curvature": "eva", "batch-size": 8}


class Keeper:
    def __init__(self):
        self.kept = None

    def load(self):
        return self.kept

    def save(self, state):
        self.kept = state

    @property
    def model(self):
        return DeviceCheckpoint.parse(self.kept).model


class Node:
    """A device without a daemon."""

    def __init__(self, number):
        self.name, self.data, self.keeper = f"d{number}", DataRequest(RUN, number, 2), Keeper()
        self.worker = OwnProcess(self.keeper, None)

    def train(self, address, session, first, steps, weights):
        request = TrainRequest(self.data, address, session, self.name, first, steps, weights)
        return self.worker.train(request)


def in_round(coordinator, pool, nodes, session, first, steps, weights):
    """Train on nodes that come one after the other."""
    coordinator.create_session(session, SessionSettings(devices=len(nodes), first_step=first))
    members = coordinator.directory.find(session).session.members
    runs = []
    for node in nodes:
        runs.append(pool.submit(node.train, coordinator.address, session, first, steps, weights))
        while node.name not in members and not runs[-1].done():
            time.sleep(0.01)
    return [run.result() for run in runs]


def test_the_server_sees_no_personal_layer_and_each_device_keeps_its_own():
    nodes = [Node(number) for number in range(2)]
    weights = nodes[0].worker.initial_weights(RUN)
    initial = build_model(Trainer(check_settings({})).task, 0).state_dict()
    assert initial.keys() - read_weights(weights).keys() == HEAD
    with embedded_coordinator() as coordinator, ThreadPoolExecutor(2) as pool:
        first = in_round(coordinator, pool, nodes, "round-1", 0, 6, weights)
        assert len({report.weights_digest for report, _ in first}) == 1
        assert read_weights(first[0][1]).keys() == initial.keys() - HEAD
        heads = [node.keeper.model["output.weight"] for node in nodes]
        assert not torch.equal(*heads)
        # The second node comes with an empty memory: its personal layers begin as at first.
        lost, nodes[1] = nodes[1], Node(1)
        settings = check_settings(RUN)
        for node in (nodes[0], nodes[1], lost):
            saved = DeviceCheckpoint.parse(node.keeper.kept) if node.keeper.kept is not None else None
            given = evaluate_weights(DeviceData.of(node.data), read_weights(first[0][1]), saved)
            own = initial if saved is None else saved.optimizer["average"]["parameters"]
            whole = {**read_weights(first[0][1]), **{name: own[name] for name in HEAD}}
            trainer = Trainer(settings, node.data.index, 2, weights=whole)
            assert given == trainer.evaluate() == node.worker.evaluate(node.data, first[0][1])
        second = in_round(coordinator, pool, nodes, "round-2", 6, 2, first[0][1])
        assert len({report.weights_digest for report, _ in second}) == 1
        moved = [node.keeper.model["output.weight"] for node in nodes]
    assert 0 < (moved[0] - heads[0]).norm() < (moved[0] - initial["output.weight"]).norm()
    assert 0 < (moved[1] - initial["output.weight"]).norm() < (moved[1] - heads[1]).norm()


def test_a_run_that_begins_anew_begins_with_the_initial_personal_layers():
    node = Node(0)
    weights = node.worker.initial_weights(RUN)
    with embedded_coordinator() as coordinator, ThreadPoolExecutor(1) as pool:
        after = []
        for session in ("run-1-round-1", "run-2-round-1"):
            in_round(coordinator, pool, [node], session, 0, 2, weights)
            after.append(node.keeper.model)
    assert all(torch.equal(after[0][name], after[1][name]) for name in after[0])


@pytest.mark.parametrize(
    "text", ["personal=output", 'personal=["output.*"]', "personal='output.weight, output.bias'", 'personal=["out*"]']
)
def test_patterns_are_a_list_or_a_text_with_commas(text):
    settings = parse_settings([text])
    assert check_settings(settings.flat()) == settings
    trainer = Trainer(settings)
    trainer.train_batch()
    assert trainer.plan.personal == HEAD
    assert trainer.common(trainer.model.state_dict()).keys() == trainer.model.state_dict().keys() - HEAD


def test_what_is_not_personal_must_be_given():
    task = Trainer(check_settings({})).task
    weights = build_model(task, 1).state_dict()
    head, trunk = weights.pop("output.weight"), weights.pop("conv1.weight")
    with pytest.raises(ValueError, match=r"conv1\.weight"):
        build_model(task, 0, weights, ["output"])
    model = build_model(task, 0, {**weights, "conv1.weight": trunk}, ["output"])
    assert not torch.equal(model.output.weight, head)
    assert torch.equal(model.output.weight, build_model(task, 0).output.weight)


def test_patterns_that_match_nothing_are_named():
    with pytest.raises(OptionError, match=r"personal is 'ouput'.* nearest are output"):
        Trainer(check_settings({"personal": "ouput"}))
    with pytest.raises(WorkError, match="personal is 'ouput'"):
        OwnProcess(Keeper(), None).initial_weights({"personal": ["ouput"]})
    with pytest.raises(SettingsError, match="setting 'personal' is 3"):
        check_settings({"personal": 3})
    with pytest.raises(SettingsError, match="setting 'personal'"):
        check_settings({"personal": [3]})


def test_a_synthetic_batch_is_no_common_one_through_personal_layers():
    class Elsewhere:
        is_alone, device = False, "a"

    def probe(samples):
        return Probe(lambda generator, n: torch.randn(n, 3, generator=generator), torch.nn.functional.cross_entropy)

    chosen = {"cadence": "every-batch", "curvature-scope": "probe", "personal": "head"}
    with pytest.raises(SettingsError, match="'curvature-scope' is 'probe': through personal layers .* 'shared' or"):
        check_settings(chosen).plan(Elsewhere(), 0, probe)
