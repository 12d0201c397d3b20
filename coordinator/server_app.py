"""Flower's ServerApp: embeds a coordinator or asks one that is a process of its own, and runs the rounds."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from coordinator.flower.bundle import bundled_homes
from coordinator.flower.checkpoint import CheckpointError, load_checkpoint
from coordinator.flower.nodes import OpenGrid
from coordinator.flower.observer import RunObserver
from coordinator.flower.remote import SessionHost, remote_coordinator
from coordinator.flower.run_config import RunConfig, split_run_config
from coordinator.flower.strategy import BudgetSpentError, NewtonStrategy
from coordinator.identity.audit import AuditLog
from coordinator.identity.gate import AccessGate
from coordinator.identity.server_tls import ServerTls
from coordinator.serving.server import embedded_coordinator

log = logging.getLogger(__name__)

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train a model over the nodes of the grid, as the run's config says."""
    _show_log()
    for home in bundled_homes():
        log.warning(
            "the app's folder has a FLWR_HOME, %s, which is bundled and sent with it, and all runs before with "
            "that: move it out of the app's folder, or name it in the app's .gitignore",
            home,
        )
    config, device_settings = split_run_config(context.run_config)
    if config.secure_aggregation and config.fraction_evaluate:
        log.warning(
            "the devices mask what they train, and after each round tell in clear how good the model is on their own "
            "samples: fraction-evaluate=0 ends that, and evaluate-every=20 tries it under masks, every 20 steps"
        )
    resumed = load_checkpoint(config.resume) if config.resume is not None else None
    if resumed is not None and resumed.round >= config.rounds:
        raise CheckpointError(f"{resumed.path} has {resumed.round} of {config.rounds} rounds behind it: raise rounds")
    with _coordinator(config) as coordinator:
        observer = RunObserver(config.output, config.tls)
        strategy = NewtonStrategy(
            coordinator,
            config,
            device_settings,
            context.run_config,
            run=str(context.run_id),
            resumed=resumed,
            observer=observer,
        )
        open_grid = OpenGrid(grid, strategy)
        try:
            arrays = strategy.query(open_grid)
            if resumed is not None:
                resumed.check(config.task, arrays)
                arrays = resumed.arrays
                log.info("goes on from %s: round %d, step %d", resumed.path, resumed.round + 1, resumed.step)
            strategy.start(
                grid=open_grid,
                initial_arrays=arrays,
                num_rounds=config.rounds - (resumed.round if resumed is not None else 0),
                timeout=config.round_deadline_s,
            )
        except BudgetSpentError as ended:
            log.warning("%s", ended)
        finally:
            # First of all: Flower gives a stopped run 5 s.
            strategy.end_session("the run is over")
            observer.close()
            try:
                log.info("history %s", strategy.save_history())
            except OSError as error:
                log.error("%s cannot be written: %s", error.filename, error.strerror or error)


@contextmanager
def _coordinator(config: RunConfig) -> Iterator[SessionHost]:
    if config.coordinator:
        with remote_coordinator(config.coordinator, config.tls) as remote:
            log.info("coordinator at %s", remote.address)
            yield remote
    else:
        gate = AccessGate()
        if config.server_tls is not None:
            gate = AccessGate(ServerTls(config.server_tls), AuditLog(config.output / "audit.jsonl"))
        with embedded_coordinator(gate=gate) as embedded:
            log.info("coordinator listens on %s", embedded.address)
            yield embedded


def _show_log() -> None:
    """Let the coordinator's log appear in the run's, in which Flower shows only its own."""
    package = logging.getLogger("coordinator")
    if not package.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(levelname)s :      %(message)s"))
        package.addHandler(handler)
        package.setLevel(logging.INFO)
