"""One device in a process of its own: trains a task, and writes down sketches of its weights as it goes."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from edgenewton.v1.sketch import Sketch
from safetensors.torch import save_file
from torch import Tensor, nn

from benchmarks.mixed.machines import Machine
from edge_client.exchange.remote import GradientExchange
from edge_client.training.settings import check_settings
from edge_client.training.trainer import Trainer
from edge_client.training.work import TrainedStep


@dataclass(frozen=True)
class Job:
    """What a device does."""

    address: str
    session: str
    index: int
    count: int
    uses_bfloat16: bool
    sketch_every: int
    settings: Mapping[str, Any]
    """As `edge-client train -c` takes them."""
    spoilt_at: int = -1
    """Before this step one element of its largest parameter is changed by 0.01."""


def start(job: Job, machine: Machine, folder: Path) -> subprocess.Popen[bytes]:
    """Start a device on a machine; what it says goes to a file in the folder, and so does what it leaves."""
    usual = {"OMP_NUM_THREADS": str(machine.threads), "MKL_NUM_THREADS": str(machine.threads)}
    with (folder / f"{job.index}.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "benchmarks.mixed.device", json.dumps(vars(job)), str(folder)],
            env={**os.environ, **usual, **machine.environment},
            stdout=log,
            stderr=log,
        )


def sketches(folder: Path, index: int) -> dict[int, Sketch]:
    """Return what a device has written down, by the step that comes next."""
    lines = [json.loads(line) for line in (folder / f"{index}.jsonl").read_text().splitlines()]
    return {line["step"]: _from_lists(line) for line in lines}


def _run(job: Job, folder: Path) -> None:
    exchange = GradientExchange.connect(job.address, session=job.session, device=f"d{job.index}")
    try:
        trainer = Trainer(check_settings(job.settings), job.index, job.count, exchange)
        model = trainer.model
        if job.uses_bfloat16:
            trainer.model = _InBfloat16(trainer.model)
        replica = trainer.plan.replica
        with (folder / f"{job.index}.jsonl").open("w", buffering=1) as lines:

            def note(_: TrainedStep) -> None:
                result = trainer.optimizer.last_result
                if result is None or result.step == trainer.optimizer.current_step:
                    return
                step = trainer.optimizer.current_step
                if step % job.sketch_every == 0 and trainer.plan.is_in_common:
                    lines.write(json.dumps(_to_lists(step, replica.sketch(step))) + "\n")
                if step == job.spoilt_at:
                    with torch.no_grad():
                        max(model.parameters(), key=torch.numel).view(-1)[0].add_(0.01)

            trainer.train(trainer.settings.steps, on_step=note)
        save_file(model.state_dict(), folder / f"{job.index}.safetensors")
        exchange.close()
    except BaseException as error:
        exchange.close(failure=str(error))
        raise


class _InBfloat16(nn.Module):
    """Runs a model in autocast, as a user's own loop does; what the optimizer does is not."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the model's outputs, in float32 for the loss."""
        with torch.autocast("cpu", torch.bfloat16):
            outputs: Tensor = self.model(inputs)
        return outputs.float()


def _to_lists(step: int, sketch: Sketch) -> dict[str, Any]:
    values = {name: getattr(sketch, name).tolist() for name in ("projections", "scales", "roundoffs")}
    return {"step": step, "names": sketch.names, **values}


def _from_lists(line: Mapping[str, Any]) -> Sketch:
    arrays = {name: torch.tensor(line[name], dtype=torch.float64).numpy() for name in ("scales", "roundoffs")}
    projections = torch.tensor(line["projections"], dtype=torch.float64).numpy()
    return Sketch(tuple(line["names"]), projections, **arrays)


if __name__ == "__main__":
    _run(Job(**json.loads(sys.argv[1])), Path(sys.argv[2]))
