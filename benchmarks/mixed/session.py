"""One session of several machines, as its coordinator's events and its devices' sketches tell it."""

import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from edgenewton.v1 import exchange_pb2 as pb
from edgenewton.v1.sketch import Sketch
from safetensors.torch import load_file

from benchmarks.mixed.device import Job, sketches, start
from benchmarks.mixed.machines import Machine
from coordinator.serving.server import embedded_coordinator
from coordinator.session.settings import SessionSettings
from coordinator.telemetry.watch import follow
from edge_client.tasks import Partition, load_task
from edge_client.training.evaluation import evaluate
from edge_client.training.trainer import build_model

COMPARED_EVERY = 10
_PATIENCE_S = 3_600.0


@dataclass(frozen=True)
class Outcome:
    """How one session went."""

    name: str
    cadence: str
    seed: int
    steps: int
    heals: list[str]
    """Why devices were sent to heal."""
    left_out: int
    """Contributions that steps went on without."""
    alignments: int
    """Steps in which weights were averaged, because rounding had moved them apart."""
    accuracies: list[float]
    """Of the devices' models at the end, on all held-out samples."""
    drift: dict[str, list[tuple[int, float]]]
    """Of each device, by step: the largest difference of a group from the median, as a part of its norm."""

    @property
    def accuracy(self) -> float:
        """Mean over the devices."""
        return sum(self.accuracies) / len(self.accuracies)

    @property
    def largest_drift(self) -> float:
        """Of any device."""
        return max((value for curve in self.drift.values() for _, value in curve), default=0.0)


def run(name: str, machines: Sequence[Machine], settings: Mapping[str, Any], spoilt_at: int = -1) -> Outcome:
    """Train once.

    Raises:
        RuntimeError: a device failed; the text has the end of what it said.

    """
    events: list[pb.SessionEvent] = []
    with embedded_coordinator() as coordinator, tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        # Nothing is timed here: several sessions share the machine.
        patience = {"step_deadline_s": 600, "join_deadline_s": 600, "lease_s": 300}
        compared = {"devices": len(machines), "digest_every": COMPARED_EVERY}
        coordinator.create_session("mixed", SessionSettings.model_validate(patience | compared))
        watch = threading.Thread(target=lambda: events.extend(follow(coordinator.address, "mixed")), daemon=True)
        watch.start()
        processes = []
        for index, machine in enumerate(machines):
            is_spoilt = index == len(machines) - 1
            job = Job(
                coordinator.address,
                "mixed",
                index,
                len(machines),
                machine.uses_bfloat16,
                COMPARED_EVERY,
                settings,
                spoilt_at if is_spoilt else -1,
            )
            processes.append(start(job, machine, folder))
        try:
            for index, process in enumerate(processes):
                if process.wait(_PATIENCE_S):
                    raise RuntimeError(f"device {index} failed: {(folder / f'{index}.log').read_text()[-2_000:]}")
        finally:
            for process in processes:
                process.kill()
        watch.join(10)
        return Outcome(
            name,
            str(settings["cadence"]),
            int(settings["seed"]),
            int(settings["steps"]),
            heals=[event.healing.reason for event in events if event.HasField("healing")],
            left_out=sum(len(event.step.commit.left_out) for event in events),
            alignments=sum(event.step.commit.HasField("alignment") for event in events),
            accuracies=[_accuracy(folder / f"{index}.safetensors") for index in range(len(machines))],
            drift=_drift([sketches(folder, index) for index in range(len(machines))], machines),
        )


def _accuracy(path: Path) -> float:
    task = load_task("digits")
    return evaluate(build_model(task, 0, load_file(path)), task, task.test_data(Partition())).accuracy


def _drift(found: Sequence[Mapping[int, Sketch]], machines: Sequence[Machine]) -> dict[str, list[tuple[int, float]]]:
    curves: dict[str, list[tuple[int, float]]] = {}
    for step in sorted(set.intersection(*(set(of_device) for of_device in found))):
        at_step = [of_device[step] for of_device in found]
        center = np.median([sketch.projections for sketch in at_step], axis=0)
        for index, (machine, sketch) in enumerate(zip(machines, at_step, strict=True)):
            parts = np.sqrt(((sketch.projections - center) ** 2).mean(1)) / sketch.scales
            curves.setdefault(f"d{index}, {machine.name}", []).append((step, float(f"{parts.max():.3g}")))
    return curves
