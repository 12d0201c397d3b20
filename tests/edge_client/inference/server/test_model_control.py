"""Loading and unloading while requests come, in one process."""

import asyncio
import contextlib
import threading

import pytest
import torch

from edge_client.inference import Artefact, Recognizer
from edge_client.inference.errors import BadRequestError, OverloadedError, UnknownModelError
from edge_client.inference.repository import ModelRepository, RepositoryError
from edge_client.inference.server.model_control import LoadingRules, ModelControl
from edge_client.inference.server.protocol import InferRequest, InputTensor
from edge_client.inference.server.service import InferenceService
from edge_client.tasks.digits import DigitsTask

TASK = DigitsTask()
PIXELS = torch.zeros(1, 8, 8, dtype=torch.uint8).numpy()


def artefact(step):
    return Artefact.of(TASK, "digits", TASK.model(), step)


@contextlib.asynccontextmanager
async def serving(folder, load=Recognizer.load, max_models=2):
    service = InferenceService("main")
    await service.swap(Recognizer.of(artefact(1)), 1)
    try:
        yield service, ModelControl(service, LoadingRules(ModelRepository(folder), load, max_models))
    finally:
        await service.stop(5)


async def version_of(service, model):
    with service.memory.request("10.0.0.1") as memory:
        tensor = InputTensor("raw", "UINT8", (1, 8, 8), PIXELS)
        return (await service.infer(InferRequest(model, "", (tensor,)), memory)).version


def test_a_repository_tells_the_newest_versions_of_what_it_can_name(tmp_path):
    for place in ("a/2/model.pt", "a/10/model.pt", "a/11/other.pt", "b.onnx", "c/1/model.onnx", ".hidden.pt", "d.txt"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).touch()
    (tmp_path / "empty").mkdir()
    found = {stored.name: stored.version for stored in ModelRepository(tmp_path).models().values()}
    assert found == {"a": 10, "b": 1, "c": 1}
    with pytest.raises(RepositoryError, match="is no folder"):
        ModelRepository(tmp_path / "d.txt")


def test_a_newer_version_is_swapped_in_while_requests_are_answered(tmp_path):
    async def run():
        artefact(1).save(tmp_path / "m" / "1" / "model.pt")
        async with serving(tmp_path) as (service, control):
            await control.load("m", {})
            seen = []

            async def ask():
                while seen[-1:] != ["2"]:
                    seen.append(await version_of(service, "m"))

            asking = asyncio.create_task(ask())
            artefact(2).save(tmp_path / "m" / "2" / "model.pt")
            await control.load("m", {})
            await asyncio.wait_for(asking, 30)
            assert seen == sorted(seen)  # every request was answered, by one version and then by the next
            assert [entry.statistics.keys() for entry in service.models if entry.name == "m"] == [{1, 2}]

    asyncio.run(run())


def test_a_version_that_cannot_be_loaded_leaves_the_one_that_serves(tmp_path):
    async def run():
        artefact(1).save(tmp_path / "m" / "1" / "model.pt")
        async with serving(tmp_path) as (service, control):
            await control.load("m", {})
            (tmp_path / "m" / "2").mkdir()
            (tmp_path / "m" / "2" / "model.pt").write_bytes(b"no model")
            with pytest.raises(BadRequestError, match="version 2 cannot be loaded"):
                await control.load("m", {})
            assert await version_of(service, "m") == "1"
            (entry,) = [entry for entry in await control.index(is_ready=True) if entry.name == "m"]
            assert (entry.version, "version 2 cannot be loaded" in entry.reason) == ("1", True)

    asyncio.run(run())


def test_one_model_is_loaded_at_a_time_and_a_client_that_hangs_up_changes_nothing(tmp_path):
    may_go_on = threading.Event()
    loads = []

    def load(path):
        loads.append(path)
        assert may_go_on.wait(30)
        return Recognizer.load(path)

    async def run():
        artefact(1).save(tmp_path / "m.pt")
        artefact(1).save(tmp_path / "n.pt")
        async with serving(tmp_path, load) as (service, control):
            first = asyncio.create_task(control.load("m", {}))
            while not loads:
                await asyncio.sleep(0.01)
            first.cancel()
            for change in (control.load("n", {}), control.load("m", {}), control.load("n", {})):
                with pytest.raises(OverloadedError, match="another model is being loaded"):
                    await change
            may_go_on.set()
            while "m" not in [model.name for model in service.models]:
                await asyncio.sleep(0.01)
            assert len(loads) == 1

    asyncio.run(run())


def test_so_many_models_are_loaded_and_no_more(tmp_path):
    async def run():
        for name in "abc":
            artefact(1).save(tmp_path / f"{name}.pt")
        async with serving(tmp_path) as (service, control):
            await control.load("a", {})
            await control.load("b", {})
            with pytest.raises(OverloadedError, match="2 models are loaded, which is the limit"):
                await control.load("c", {})
            await control.load("a", {})
            await control.unload("a", {})
            await control.load("c", {})
            assert [model.name for model in service.models] == ["main", "b", "c"]
            with pytest.raises(UnknownModelError, match="model 'a' is unknown; this device serves 'main', 'b', 'c'"):
                await version_of(service, "a")
            with pytest.raises(BadRequestError, match="must be true or false"):
                await control.unload("b", {"unload_dependents": "yes"})

    asyncio.run(run())
