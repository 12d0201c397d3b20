"""Other hardware than the CPU: CUDA and MPS where there is one, and in any case a second kind of device."""

import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import second_device
import torch
from local_devices import data, wide_model
from torch import nn
from torch.nn.functional import cross_entropy
from typer.testing import CliRunner

from coordinator.serving.server import embedded_coordinator
from coordinator.session.settings import SessionSettings
from edge_client import GradientExchange, NewtonOptimizer
from edge_client.cli import app
from edge_client.curvature import linalg
from edge_client.curvature.measured_inputs import MeasuredInputs
from edge_client.curvature.probe import Probe
from edge_client.device_name import DeviceNameError
from edge_client.devices import DeviceError, choose_device, device_of
from edge_client.inference import Artefact, ArtefactError, Recognizer, onnx_engine
from edge_client.optim import Curvature
from edge_client.sync import (
    EveryBatch,
    LocalCurvature,
    LocalSteps,
    Outer,
    Own,
    ProbeCurvature,
    Probed,
    Shared,
)
from edge_client.tasks import load_task
from edge_client.training.jobs import DeviceData
from edge_client.training.settings import SettingsError, TrainSettings, check_settings
from edge_client.training.trainer import Trainer, build_model
from edge_client.training.work import DataRequest


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


def trained(device, steps=4, state=None, **options):
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


def assert_alike(one, other, hardware, optimizer=None):
    """The second device computes what the CPU does; others round otherwise."""
    tolerance = {"rtol": 0, "atol": 0} if hardware == second_device.NAME else {"rtol": 1e-3, "atol": 1e-4}
    personal = optimizer._sync.personal if optimizer is not None else ()
    for (name, a), b in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        if name not in personal:
            torch.testing.assert_close(a.cpu(), b.cpu(), **tolerance)


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


def test_a_device_is_a_property_of_the_machine():
    """A daemon's goes before the run's, and a state is gone on from on another one."""
    request = DataRequest({"device": "cuda"}, 0, 1)
    of_run, of_machine = DeviceData.of(request), DeviceData.of(request, device="cpu")
    assert (of_run.settings.device, of_machine.settings.device) == ("cuda", "cpu")
    assert of_run.text == of_machine.text


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


class Session:
    """A real coordinator and two devices, one of them on the CPU."""

    def __init__(self, hardware, plan, **settings):
        self._hardware, self._plan = hardware, plan
        self._settings = {"devices": 2, "rejoin_deadline_s": 0, "codec": "fp32"} | settings

    def train(self, steps, states=(None, None), seeds=(0, 0)):
        """Train with the devices' states, or from the beginning; return models, optimizers and states."""
        models = [wide_model(seed) for seed in seeds]
        with embedded_coordinator() as coordinator, ThreadPoolExecutor(2) as pool:
            coordinator.create_session("s", SessionSettings(**self._settings))
            runs = [
                pool.submit(self._train, coordinator.address, number, models[number].to(device), steps, states[number])
                for number, device in enumerate(("cpu", self._hardware))
            ]
            return [run.result() for run in runs]

    def _train(self, address, number, model, steps, state):
        device = device_of(model)
        with GradientExchange.connect(address, session="s", device=f"d{number}") as exchange:
            optimizer = NewtonOptimizer(model, sync=self._plan(exchange))
            if state is not None:
                model.load_state_dict(state["model"])
                optimizer.load_state_dict(state["optimizer"])
            optimizer.join()
            while optimizer.current_step < steps:
                x, y = data(number, optimizer.current_step)
                optimizer.zero_grad()
                loss = cross_entropy(model(x.to(device)), y.to(device))
                loss.backward()
                optimizer.report(loss.item())
                optimizer.step()
            optimizer.synchronise()
            return model, optimizer, optimizer.state_dict()


def measured():
    return MeasuredInputs(data(0, 0)[0])


PLANS = {
    "every batch": (EveryBatch, {}),
    "every batch, in the step": (lambda e: EveryBatch(e, overlap=False), {}),
    "every batch, whitened": (lambda e: EveryBatch(e, whiten=True), {"codec": "int8"}),
    "local curvature": (lambda e: LocalCurvature(e, 2), {}),
    "probe": (lambda e: ProbeCurvature(Probe(measured(), cross_entropy, samples=8), e), {}),
    "every batch, personal": (lambda e: EveryBatch(e, personal=["4.*"]), {}),
    "local steps, own": (lambda e: LocalSteps(e, 2, scope=Own()), {}),
    "local steps, shared": (lambda e: LocalSteps(e, 2, scope=Shared(), outer=Outer(outer_momentum=0.5)), {}),
    "local steps, blend, overlapped": (
        lambda e: LocalSteps(e, 2, scope=Probed(Probe(measured(), cross_entropy, samples=8), 0.5), overlap=True),
        {"codec": "sparse1"},
    ),
}


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_devices_of_unlike_hardware_train_together(hardware, plan):
    (one, first, state), (other, _, state_too) = Session(hardware, plan[0], **plan[1]).train(4)
    step = first.current_step
    assert step >= 4
    assert_alike(one, other, hardware, first)
    # What they knew is gone on from with their places exchanged.
    (one, first, _), (other, _, _) = Session(hardware, plan[0], first_step=step, **plan[1]).train(
        step + 2,
        [{"model": other.state_dict(), "optimizer": state_too}, {"model": one.state_dict(), "optimizer": state}],
    )
    assert first.current_step >= step + 2
    assert_alike(one, other, hardware, first)


@pytest.mark.parametrize("plan", ["every batch, whitened", "local steps, blend, overlapped"])
def test_a_device_heals_with_the_state_of_unlike_hardware(hardware, plan, caplog):
    make, settings = PLANS[plan]
    (one, _, _), (other, _, _) = Session(hardware, make, **settings).train(4, seeds=(0, 1))
    assert "heals: its state is not the session's" in caplog.text
    assert_alike(one, other, hardware)


@pytest.mark.parametrize(
    "curvature", [Curvature("kfac"), Curvature("kfac", inversion="eigen"), Curvature("eva")], ids=str
)
def test_a_device_without_float64_leaves_it_to_the_cpu(monkeypatch, curvature):
    monkeypatch.setattr(second_device, "lacks_float64", True)
    with pytest.raises(TypeError, match="elsewhere has no float64"):
        torch.ones(2).to(second_device.NAME).double()
    monkeypatch.setattr(linalg, "WITHOUT_FLOAT64", {second_device.NAME})
    on_hardware, _ = trained(second_device.NAME, curvature=curvature)
    on_cpu, _ = trained("cpu", curvature=curvature)
    assert_alike(on_hardware, on_cpu, second_device.NAME)
    singular = torch.ones(1, 3, 3)  # the first rungs of the ladder fail
    assert linalg.damped_inverse(singular.to(second_device.NAME), torch.zeros(1)).isfinite().all()


@pytest.mark.parametrize("engine", ["torch", "export"])
def test_a_model_recognises_where_it_is_told_to(hardware, engine, tmp_path):
    if (hardware, engine) == (second_device.NAME, "export"):
        pytest.skip("torch.export traces tensors of its own kind")
    task = load_task("digits")
    artefact = Artefact.of(task, "digits", build_model(task, 0).to(hardware), 0)
    artefact.save(tmp_path / "model.pt")
    raw = torch.randint(0, 255, (3, *task.raw_shape), dtype=torch.uint8).numpy()
    one = Recognizer.load(tmp_path / "model.pt", engine, device=hardware).probabilities(raw)
    other = Recognizer.load(tmp_path / "model.pt").probabilities(raw)
    np.testing.assert_allclose(one, other, rtol=1.3e-6, atol=1e-5)


def test_recognition_names_a_device_that_is_not_there(tmp_path):
    task = load_task("digits")
    Artefact.of(task, "digits", build_model(task, 0), 0).save(tmp_path / "model.pt")
    with pytest.raises(ArtefactError, match=r"model.pt: device 'cuda:99' is not on this machine; it has cpu"):
        Recognizer.load(tmp_path / "model.pt", device="cuda:99")
    for device in ("mps", "cuda", "gpu"):
        with pytest.raises(ArtefactError, match=f"device '{device}'"):
            onnx_engine._providers(device, ["CPUExecutionProvider"])
    both = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    assert onnx_engine._providers("auto", both[1:]) == ["CPUExecutionProvider"]
    assert onnx_engine._providers("cuda:1", both)[0] == ("CUDAExecutionProvider", {"device_id": 1})
    for command in ("predict", "evaluate", "serve"):
        arguments = [command, str(tmp_path / "model.pt"), "--device", "cuda:99"]
        result = CliRunner().invoke(app, [*arguments, *(["x.png"] if command == "predict" else [])])
        assert result.exit_code == 1
        assert "device 'cuda:99' is not on this machine" in " ".join(result.stderr.split())
