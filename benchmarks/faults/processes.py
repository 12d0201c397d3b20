"""What the processes of a fleet run; imported once by the fork server."""

import json
import logging
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import sklearn.datasets  # noqa: F401
import torch
from edgenewton.common.failpoints import arm

from coordinator.cli.commands import app as coordinator_app
from edge_client.exchange.remote import GradientExchange
from edge_client.sync.replica import weights_digest
from edge_client.training.checkpoint import DeviceCheckpoint
from edge_client.training.settings import check_settings
from edge_client.training.trainer import Trainer
from edge_client.training.work import TrainedStep

_SLOW_S = 0.5
"""What a slow device adds to a batch that takes some 0.05 s."""


@dataclass(frozen=True)
class DeviceJob:
    """What a device process does."""

    index: int
    address: str
    session: str
    folder: str
    devices: int
    steps: int
    curvature: str
    save_every: int
    seed: int
    training: dict[str, str]
    failpoint: str
    slow_steps: tuple[int, int]
    diverge_at: int


def run_coordinator(arguments: list[str], failpoint: str, log: str) -> None:
    """Run `edge-coordinator serve`."""
    _log_to(log)
    arm(failpoint)
    coordinator_app(["serve", *arguments])


def run_device(job: DeviceJob) -> None:
    """Train as `edge-client train --state` does, and note each step that was applied."""
    folder = Path(job.folder)
    _log_to(str(folder / f"device-{job.index}.log"))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s.%(msecs)03d %(levelname)s %(message)s")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    arm(job.failpoint)
    torch.manual_seed(job.seed)
    state_path = folder / f"state-{job.index}.pt"
    saved = DeviceCheckpoint.load(state_path, job.session)
    usual: dict[str, object] = {"steps": job.steps, "batch-size": 16, "lr": 0.03, "threads": 1}
    usual |= {"cadence": "every-batch", "curvature": job.curvature}
    settings = check_settings(usual | {"seed": job.seed} | job.training)
    exchange = _join(job)
    try:
        trainer = Trainer(
            settings,
            job.index,
            job.devices,
            exchange,
            weights=saved.model if saved is not None else None,
            state=saved.optimizer if saved is not None else None,
        )
        trainer.join()
        with (folder / f"steps-{job.index}.txt").open("a", buffering=1) as trace:

            def note(step: TrainedStep) -> None:
                applied = trainer.optimizer.current_step
                if applied % job.save_every == 0:
                    DeviceCheckpoint(job.session, trainer.model.state_dict(), trainer.state_dict()).save(state_path)
                # Whatever is noted here must never be lost: what all have in common, after the last result.
                result = trainer.optimizer.last_result
                if result is not None and (settings.cadence == "every-batch" or step.devices != 1):  # no local step
                    trace.write(f"{result.next_step - 1} {trainer.plan.replica.digest().hex()}\n")
                if job.slow_steps[0] <= applied < job.slow_steps[1]:
                    time.sleep(_SLOW_S)
                if applied == job.diverge_at:
                    with torch.no_grad():
                        next(trainer.model.parameters()).add_(0.01)

            trainer.train(max(0, job.steps - trainer.optimizer.current_step), on_step=note)
            DeviceCheckpoint(job.session, trainer.model.state_dict(), trainer.state_dict()).save(state_path)
        exchange.close()
    except KeyboardInterrupt:
        exchange.close(failure="it was stopped")
        os._exit(130)
    except BaseException as error:
        logging.exception("failed")
        exchange.close(failure=str(error))
        os._exit(1)
    evaluation = trainer.evaluate()
    result = {
        "digest": weights_digest(trainer.model).hex(),
        "steps": trainer.optimizer.current_step,
        "correct": evaluation.correct,
        "samples": evaluation.samples,
    }
    partial = folder / f".result-{job.index}.json"
    partial.write_text(json.dumps(result))
    partial.replace(folder / f"result-{job.index}.json")


def _join(job: DeviceJob) -> GradientExchange:
    return GradientExchange.connect(
        job.address, session=job.session, device=f"device-{job.index}", connect_timeout_s=30.0
    )


def _log_to(path: str) -> None:
    file = Path(path).open("a", buffering=1)  # noqa: SIM115
    os.dup2(file.fileno(), 1)
    os.dup2(file.fileno(), 2)
    sys.stdout, sys.stderr = file, file
