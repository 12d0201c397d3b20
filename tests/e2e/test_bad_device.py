"""A device process that trains the model to be wrong, among four that are honest: with `history` these still learn."""

import contextlib

import pytest
from processes import Coordinator, running

from edge_client.inference import Artefact
from edge_client.tasks import Partition, load_task
from edge_client.training.evaluation import evaluate

pytestmark = [pytest.mark.processes, pytest.mark.timeout(400)]

HONEST = 4
STEPS = 25


@pytest.mark.parametrize("aggregator", ["mean", "history"])
def test_the_others_learn(tmp_path, aggregator):
    tasks = [*["digits"] * HONEST, "reversed_digits:ReversedDigits"]
    audit = tmp_path / "audit.jsonl"
    with (
        Coordinator("attacked", HONEST + 1, f"--aggregator={aggregator}", f"--audit={audit}") as coordinator,
        contextlib.ExitStack() as stack,
    ):
        clients = []
        for index, task in enumerate(tasks):
            place = (
                f"--coordinator {coordinator.address} --session attacked --device d{index} --index {index} --count 5"
            )
            options = f"-c steps={STEPS} -c cadence=every-batch -c partition=iid -c task={task}"
            output = ["--output", tmp_path / f"{index}.pt"]
            clients.append(stack.enter_context(running("train", *place.split(), *options.split(), *output)))
        for client in clients:
            printed, _ = client.communicate(timeout=300)
            assert client.returncode == 0, printed
        assert coordinator.wait() == 0
    task = load_task("digits")
    model = task.model()
    model.load_state_dict(Artefact.load(tmp_path / "0.pt").weights)
    accuracy = evaluate(model, task, task.test_data(Partition())).accuracy
    if aggregator == "mean":
        assert accuracy < 0.5
    else:
        assert accuracy > 0.85
        assert '"device": "d4"' in audit.read_text()
        assert "unlike" in audit.read_text()
