"""Flower's side of training: each round is one session of the coordinator, then a federated evaluation."""

import json
import logging
from collections.abc import Iterable
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from coordinator.checkpoint import save_checkpoint
from coordinator.observer import RunObserver
from coordinator.remote import SessionHost
from coordinator.run_config import RunConfig

log = logging.getLogger(__name__)

DIGEST_KEY = "weights-digest"


class RoundFailedError(RuntimeError):
    """A round could not be trained; the text gives each device's reason."""


class NewtonStrategy(FedAvg):
    """FedAvg in the choice of nodes and the evaluation; but training goes through the coordinator, step by step.

    All devices end a round with the same weights, so there is nothing left to average: one copy is taken after the
    digests of all have been compared.

    Args:
        coordinator: where the devices exchange their gradients.
        config: how the run is organised.
        device_settings: settings for the devices, which check them.
        run: id of the run, which tells its sessions from those of others.
        observer: keeps what happens in the rounds; None for nobody.

    """

    def __init__(
        self,
        coordinator: SessionHost,
        config: RunConfig,
        device_settings: dict[str, object],
        *,
        run: str,
        observer: RunObserver | None = None,
    ) -> None:
        super().__init__(
            min_train_nodes=config.devices,
            min_evaluate_nodes=config.devices,
            min_available_nodes=config.devices,
        )
        self.history: list[dict[str, Any]] = []
        self._coordinator = coordinator
        self._config = config
        self._observer = observer
        self._settings_json = json.dumps(device_settings)
        self._run = run
        self._session = ""

    def device_config(self) -> ConfigRecord:
        """Return what every message to a device carries."""
        return ConfigRecord({"settings": self._settings_json})

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Open the round's session and invite the nodes to it."""
        before = self._config.steps_before(server_round)
        self._session = f"run-{self._run}-round-{server_round}"
        config.update(self.device_config())
        config["coordinator"] = self._coordinator.address
        config["session"] = self._session
        config["steps"] = self._config.steps_before(server_round + 1) - before
        messages = list(super().configure_train(server_round, arrays, config, grid))
        settings = self._config.session_settings(server_round, devices=len(messages))
        self._coordinator.create_session(self._session, settings)
        if self._observer is not None:
            self._observer.observe(self._coordinator.address, self._session, settings)
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Take the weights that all devices share, and save them.

        Raises:
            RoundFailedError: a device failed or did not answer, or the devices' weights differ.

        """
        replies = list(replies)
        self._coordinator.abort(self._session, "the round is over")
        failures = [f"node {m.metadata.src_node_id}: {m.error.reason}" for m in replies if m.has_error()]
        if failures or not replies:
            raise RoundFailedError(f"round {server_round} failed: " + ("; ".join(failures) or "no device answered"))
        digests = {str(reply.content["report"][DIGEST_KEY]) for reply in replies}
        if len(digests) > 1:
            raise RoundFailedError(f"round {server_round}: the devices ended with {len(digests)} different models")
        _, metrics = super().aggregate_train(server_round, replies)
        arrays = replies[0].content.array_records[self.arrayrecord_key]
        step = self._config.steps_before(server_round + 1)
        path = save_checkpoint(arrays, self._config.output, server_round, step, self._config.task)
        log.info("checkpoint %s", path)
        self.history.append({"round": server_round, "step": step, "train": dict(metrics or {})})
        return arrays, metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask the nodes to try the model on their held-out samples."""
        config.update(self.device_config())
        return super().configure_evaluate(server_round, arrays, config, grid)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Add the nodes' results up."""
        metrics = super().aggregate_evaluate(server_round, replies)
        if metrics is not None:
            self.history[-1]["evaluate"] = dict(metrics)
        return metrics

    def query(self, grid: Grid) -> ArrayRecord:
        """Ask one node for the initial weights, so that the ServerApp needs no model; the node checks its settings.

        Raises:
            RoundFailedError: the node refuses the settings or does not answer.

        """
        node = min(grid.get_node_ids())
        message = Message(RecordDict({"config": self.device_config()}), node, MessageType.QUERY)
        for reply in grid.send_and_receive([message], timeout=self._config.join_deadline_s):
            if reply.has_error():
                raise RoundFailedError(f"node {node} cannot begin: {reply.error.reason}")
            return reply.content.array_records[self.arrayrecord_key]
        raise RoundFailedError(f"node {node} did not answer within {self._config.join_deadline_s:g} s")
