"""A model that is trained in a Flower message serves before the message's end, and requests go on through each swap."""

import asyncio
import threading
from pathlib import Path

import pytest
import torch
from client_app_calls import ask, context

from coordinator.serving.server import embedded_coordinator
from coordinator.session.settings import SessionSettings
from edge_client.daemon.messages import Published
from edge_client.daemon.publication import Publication
from edge_client.inference import Artefact, ArtefactError, Recognizer
from edge_client.inference.accuracy_gate import AccuracyGate
from edge_client.inference.followed_file import FollowedFile
from edge_client.inference.server.protocol import InferRequest, InputTensor
from edge_client.inference.server.service import InferenceService
from edge_client.tasks.digits import DigitsTask
from edge_client.training.run import averaged_weights
from edge_client.training.settings import TrainSettings
from edge_client.training.trainer import Trainer

TASK = DigitsTask()
PIXELS = torch.zeros(1, 8, 8, dtype=torch.uint8).numpy()
STEPS, EVERY = 6, 2


def message(given, steps=STEPS):
    """Train in one message of Flower's; return the weights that it gives back."""
    weights = ask("query", given).content.array_records["arrays"].to_torch_state_dict()
    with embedded_coordinator() as coordinator:
        coordinator.create_session("round-1", SessionSettings(devices=1))
        place = {"coordinator": coordinator.address, "session": "round-1", "first-step": 0, "steps": steps}
        reply = ask("train", given, weights, **place)
    assert not reply.has_error(), reply.error.reason
    return reply.content.array_records["arrays"].to_torch_state_dict()


def averages():
    """Return the averaged weights after each step that is published, as a device alone has them."""
    trainer = Trainer(TrainSettings(cadence="every-batch", curvature="eva", batch_size=16))
    found = {}
    for _ in range(STEPS // EVERY):
        trainer.train(EVERY)
        found[trainer.optimizer.current_step] = averaged_weights(trainer)
    return found


async def ask_until(service, stop):
    """Ask all the time; return the versions that answered, in their order."""
    versions = []
    tensor = InputTensor("raw", "UINT8", (1, 8, 8), PIXELS)
    while not stop.is_set():
        with service.memory.request("10.0.0.1") as memory:
            response = await service.infer(InferRequest("model", "", (tensor,)), memory)
        versions.append(int(response.version))
        await asyncio.sleep(0.02)  # the training is to have a share of the processor
    return versions


def assert_same(weights, expected):
    assert all(torch.equal(weights[name], tensor) for name, tensor in expected.items())


def test_without_a_daemon_the_file_that_a_server_follows_is_replaced_during_the_message(tmp_path):
    path = tmp_path / "model.pt"
    Artefact.of(TASK, "digits", TASK.model(), 0).save(path)
    followed = FollowedFile(path, every_s=0.02)
    steps, swapped = [], threading.Event()
    loop = asyncio.new_event_loop()

    async def serve(service, stop):
        def load(path):
            artefact = Artefact.load(path)
            steps.append((artefact.step, artefact.weights))
            return Recognizer.of(artefact)

        async def swap(recognizer, version):
            await service.swap(recognizer, version)
            swapped.set()

        following = asyncio.create_task(followed.follow(load, swap))
        versions = await ask_until(service, stop)
        following.cancel()
        await service.stop(5)
        return versions

    async def run():
        stop = asyncio.Event()
        service = InferenceService("model")
        # Before the training begins: here both draw from one generator, that of this process.
        await service.swap(Recognizer.load(path), followed.version)
        serving = asyncio.create_task(serve(service, stop))
        given = context(**{"publish": str(path), "publish-every": EVERY})
        await asyncio.to_thread(message, given)
        while followed.version == 1 or steps[-1][0] != STEPS:
            await asyncio.sleep(0.01)
        while service.batcher.serving.version != followed.version:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        stop.set()
        return await serving

    try:
        versions = loop.run_until_complete(asyncio.wait_for(run(), 400))
    finally:
        loop.close()
    assert versions == sorted(versions)
    assert versions[-1] == followed.version
    expected = averages()
    for step, weights in steps:
        assert_same(weights, expected[step])


@pytest.mark.parametrize(
    ("config", "text"),
    [({"publish-every": 5}, "no file to publish to"), ({"publish": "x", "publish-every": "5"}, "publish-every='5'")],
)
def test_a_node_is_told_what_is_wrong_with_what_it_publishes(config, text):
    reply = ask("query", context(**config))
    assert text in reply.error.reason


def test_a_full_disk_stops_no_training(tmp_path, caplog):
    (tmp_path / "file").touch()
    given = context(**{"publish": str(tmp_path / "file" / "model.pt"), "publish-every": EVERY})
    assert_same(message(given), averages()[STEPS])
    assert [record.getMessage().count("cannot be written") for record in caplog.records if "step" in record.msg] == [1]


def published(step, accuracy, path=Path("none")):
    return Published(step, path, accuracy, 0.5)


def test_the_gate_compares_with_what_was_published_last(tmp_path):
    Artefact.of(TASK, "digits", TASK.model(), 1).save(tmp_path / "model.pt")
    accepted = []

    async def promote(artefact, accuracy):
        accepted.append(accuracy)

    async def run():
        publication = Publication(AccuracyGate(0.02), promote)
        for step, accuracy in enumerate((0.4, 0.9, 0.85, 0.89)):
            publication.take(published(step, accuracy, tmp_path / "model.pt"))
            await publication.end()
        assert publication.accuracy_of_serving(0.5) == 0.89

    asyncio.run(run())
    assert accepted == [0.9, 0.89]


def test_of_several_that_wait_the_newest_serves_and_a_damaged_one_is_passed_over(tmp_path):
    Artefact.of(TASK, "digits", TASK.model(), 1).save(tmp_path / "model.pt")
    accepted = []

    async def run():
        may_go_on = asyncio.Event()

        async def promote(artefact, accuracy):
            await may_go_on.wait()
            accepted.append(accuracy)
            if accuracy == 0.1:
                raise ArtefactError("it cannot recognise")

        publication = Publication(None, promote)
        publication.take(published(1, 0.1, tmp_path / "model.pt"))
        await asyncio.sleep(0)
        for step in (2, 3, 4):
            publication.take(published(step, step / 10, tmp_path / "model.pt"))
        may_go_on.set()
        await publication.end()
        assert publication.accuracy_of_serving(None) == 0.4

    asyncio.run(run())
    assert accepted == [0.1, 0.4]
