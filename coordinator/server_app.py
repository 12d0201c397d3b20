"""Flower's ServerApp: embeds a coordinator or asks one that is a process of its own, and runs the rounds."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from coordinator.checkpoint import save_history
from coordinator.observer import RunObserver
from coordinator.remote import SessionHost, remote_coordinator
from coordinator.run_config import RunConfig, split_run_config
from coordinator.server import embedded_coordinator
from coordinator.strategy import NewtonStrategy

log = logging.getLogger(__name__)

app = ServerApp()

_POLL_S = 0.2


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train a model over the nodes of the grid, as the run's config says."""
    _show_log()
    config, device_settings = split_run_config(context.run_config)
    _wait_for_nodes(grid, config)
    with _coordinator(config) as coordinator:
        observer = RunObserver(config.output)
        strategy = NewtonStrategy(coordinator, config, device_settings, run=str(context.run_id), observer=observer)
        try:
            strategy.start(
                grid=grid,
                initial_arrays=strategy.query(grid),
                num_rounds=config.rounds,
                timeout=config.round_deadline_s,
            )
        finally:
            observer.close()
            path = save_history(strategy.history, context.run_config, config.output)
            log.info("history %s", path)


@contextmanager
def _coordinator(config: RunConfig) -> Iterator[SessionHost]:
    if config.coordinator:
        with remote_coordinator(config.coordinator) as remote:
            log.info("coordinator at %s", remote.address)
            yield remote
    else:
        with embedded_coordinator() as embedded:
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


def _wait_for_nodes(grid: Grid, config: RunConfig) -> None:
    deadline = time.monotonic() + config.join_deadline_s
    while (connected := len(list(grid.get_node_ids()))) < config.devices:
        if time.monotonic() > deadline:
            raise TimeoutError(
                f"{connected} of {config.devices} devices are connected after {config.join_deadline_s:g} s. In the "
                "simulation engine all must run at once: flwr run . --federation-config "
                f'"num-supernodes={config.devices} client-resources-num-cpus=1 init-args-num-cpus={config.devices}"'
            )
        time.sleep(_POLL_S)
