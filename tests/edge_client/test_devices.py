"""What computes on other hardware than the CPU: on CUDA and MPS where there is one, and on a second kind in any case."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from edge_client import NewtonOptimizer
from edge_client.devices import DeviceError, choose_device
from edge_client.device_name import DeviceNameError
from edge_client.optim import Curvature
from edge_client.training.settings import SettingsError, TrainSettings, check_settings
from edge_client.training.trainer import Trainer


@pytest.fixture(autouse=True)
def _warnings_are_errors():
    # What fails on a device is given up with a warning where the loop can go on without.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


class Net(nn.Module):
    """Layers of all kinds that have curvature."""

    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(5, 4)
        self.conv = nn.Conv1d(4, 6, 3, padding=1)
        self.norm = nn.BatchNorm1d(6)
        self.layer_norm = nn.LayerNorm(7)
        self.output = nn.Linear(42, 3)

    def forward(self, x):
        x = self.norm(self.conv(self.tokens(x).mT))
        return self.output(self.layer_norm(x).relu().flatten(1))


def batch(step, device="cpu"):
    generator = torch.Generator().manual_seed(step)
    x, y = torch.randint(0, 5, (8, 7), generator=generator), torch.randint(0, 3, (8,), generator=generator)
    return x.to(device), y.to(device)


def trained(device, steps=6, state=None, **options):
    """Return a model and its optimizer after some steps on a device."""
    torch.manual_seed(0)
    model = Net().to(device)
    optimizer = NewtonOptimizer(model, **options)
    if state is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    for step in range(optimizer.current_step, steps):
        x, y = batch(step, device)
        optimizer.zero_grad()
        loss = cross_entropy(model(x), y)
        loss.backward()
        optimizer.report(loss.item())
        optimizer.step()
    return model, optimizer


def assert_alike(one, other, hardware):
    """The second device computes what the CPU does; others round otherwise."""
    tolerance = {"rtol": 0, "atol": 0} if hardware in ("cpu", "second") else {"rtol": 1e-3, "atol": 1e-4}
    for (name, a), b in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(a.cpu(), b.cpu(), msg=lambda text: f"{name}: {text}", **tolerance)


@pytest.mark.filterwarnings("ignore:the estimator 'mkor' does not support")
@pytest.mark.parametrize(
    "curvature",
    [Curvature(name) for name in ("kfac", "eva", "foof", "mkor", "soap")] + [Curvature("kfac", inversion="eigen")],
    ids=str,
)
def test_curvature_is_where_the_model_is(hardware, curvature):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the estimator 'mkor' does not support")
        on_hardware, _ = trained(hardware, curvature=curvature)
        on_cpu, _ = trained("cpu", curvature=curvature)
    assert_alike(on_hardware, on_cpu, hardware)


def test_a_trainer_trains_where_it_is_told_to(hardware):
    report = {}
    for device in ("cpu", hardware):
        trainer = Trainer(TrainSettings(steps=4, device=device))
        report[device] = trainer.train(4), trainer.evaluate()
    assert next(trainer.model.parameters()).device.type == torch.device(hardware).type
    (one, tried), (other, tried_too) = report["cpu"], report[hardware]
    assert one.loss == pytest.approx(other.loss, rel=1e-3)
    assert tried.samples == tried_too.samples


def test_a_state_of_one_device_is_gone_on_from_on_another(hardware):
    whole, _ = trained(hardware, 6)
    for first, second in ((hardware, "cpu"), ("cpu", hardware)):
        model, optimizer = trained(first, 3)
        gone_on, _ = trained(second, 6, {"model": model.state_dict(), "optimizer": optimizer.state_dict()})
        assert_alike(gone_on, whole, hardware)


def test_a_device_is_chosen_by_name(monkeypatch):
    assert choose_device("cpu") == torch.device("cpu")
    for there, chosen in (((), "cpu"), (("mps",), "mps:0"), (("mps", "cuda"), "cuda:0")):
        monkeypatch.setattr("edge_client.devices.count", lambda kind, there=there: kind == "cpu" or kind in there)
        assert choose_device("auto") == torch.device(chosen)


def test_a_device_that_is_not_there_is_named(monkeypatch):
    with pytest.raises(DeviceNameError, match="device 'gpu' is unknown; known are auto, cpu, cuda, mps, and one of"):
        choose_device("gpu")
    with pytest.raises(DeviceError, match="device 'cuda:99' is not on this machine; it has cpu"):
        choose_device("cuda:99")
    with pytest.raises(SettingsError, match="setting 'device' is 'gpu': .*device 'gpu' is unknown"):
        check_settings({"device": "gpu"})
    with pytest.raises(DeviceError, match="cuda:99"):
        Trainer(TrainSettings(device="cuda:99"))
    monkeypatch.setattr("edge_client.devices.count", lambda kind: {"cpu": 1, "cuda": 2}.get(kind, 0))
    with pytest.raises(DeviceError, match="device 'cuda:2' is not on this machine; it has cpu, cuda:0, cuda:1"):
        choose_device("cuda:2")
