"""The figures of a run, as `edge-coordinator report --json` prints them."""

from typing import Any

from coordinator.report.run import Run
from coordinator.telemetry.statistics import DeviceStatistics


def figures(run: Run) -> dict[str, Any]:
    """Return what the report shows in numbers: bytes, seconds since the Unix epoch, and parts of one."""
    accuracies, best = run.accuracies, run.best_of_all
    return {
        "run": run.title,
        "source": str(run.source),
        "sessions": run.sessions,
        "phase": run.phase,
        "reason": run.reason,
        "began_at": run.began_at,
        "ended_at": run.ended_at,
        "steps": run.committed,
        "run_steps": run.run_steps,
        "loss": run.last_loss,
        "accuracy": accuracies[-1][1] if accuracies else None,
        "best": None if best is None else best._asdict(),
        "averages": run.averages,
        "samples": run.samples,
        "received": run.received,
        "sent": run.sent,
        "saved": run.saved,
        "left_out": run.left_out,
        "skipped": run.skipped,
        "privacy": run.privacy.figures(),
        "refusals": dict(run.refusals),
        "devices": [_device(device) for _, device in sorted(run.devices.items())],
        "rounds": [
            {"round": of.number, "step": of.step, "train": dict(of.train), "evaluate": dict(of.evaluate)}
            for of in run.rounds
        ],
        "curves": {
            "loss": [(step.step, step.loss) for step in run.steps if step.loss is not None],
            "accuracy": accuracies,
        },
    }


def _device(device: DeviceStatistics) -> dict[str, Any]:
    return {
        "device": device.device,
        "state": device.state,
        "training_samples": device.training_samples,
        "batches": device.batches,
        "skipped": device.skipped,
        "own_loss": device.loss,
        "epsilon": device.epsilon,
        "left_out": device.left_out,
        "healings": device.healings,
        "sent": device.received,
        "received": device.sent,
    }
