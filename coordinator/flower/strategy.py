"""Flower's side of training: each round is one session of the coordinator, then a federated evaluation."""

import json
import logging
import random
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from coordinator.flower.checkpoint import Checkpoint, save_checkpoint
from coordinator.flower.history import save_history
from coordinator.flower.nodes import Node, wait_for_nodes
from coordinator.flower.observer import RunObserver
from coordinator.flower.remote import SessionHost
from coordinator.flower.run_config import RunConfig

log = logging.getLogger(__name__)

DIGEST_KEY = "weights-digest"


class RoundFailedError(RuntimeError):
    """A round could not be trained; the text gives each device's reason."""


class BudgetSpentError(RuntimeError):
    """The devices' privacy budgets allow no further round; what was trained until then is the run's result."""


class NewtonStrategy(FedAvg):
    """FedAvg's way of evaluating; but training goes through the coordinator, step by step.

    All devices end a round with the same weights, so there is nothing left to average: one copy is taken after the
    digests of all have been compared. Pass `start` a grid of `coordinator.flower.nodes.OpenGrid` with this strategy as
    its round, and devices may come and go in the middle of a round.

    Args:
        coordinator: where the devices exchange their gradients.
        config: how the run is organised.
        device_settings: settings for the devices, which check them.
        described: the whole run config, for the history.
        run: id of the run, which tells its sessions from those of others.
        resumed: what the run goes on from; Flower then counts only the rounds that are left.
        observer: keeps what happens in the rounds; None for nobody.

    """

    def __init__(
        self,
        coordinator: SessionHost,
        config: RunConfig,
        device_settings: dict[str, object],
        described: Mapping[str, object],
        *,
        run: str,
        resumed: Checkpoint | None = None,
        observer: RunObserver | None = None,
    ) -> None:
        super().__init__(
            fraction_train=config.fraction_train,
            fraction_evaluate=config.fraction_evaluate,
            min_train_nodes=config.quorum or 1,
            min_evaluate_nodes=1,
            min_available_nodes=config.devices,
        )
        self.history: list[dict[str, Any]] = list(resumed.history) if resumed is not None else []
        self._coordinator = coordinator
        self._config = config
        self._described = described
        self._observer = observer
        self._settings_json = json.dumps(device_settings)
        self._is_private = device_settings.get("epsilon", "never") != "never"
        self._ended = ""
        """Why no device can train a further round."""
        self._run = run
        self._rounds_before = resumed.round if resumed is not None else 0
        self._step = resumed.step if resumed is not None else 0
        """Number of the step that comes next."""
        self._session = ""
        self._invitation = RecordDict()
        self._invited: dict[int, Node] = {}
        self._silent: set[Node] = set()
        """Nodes of the last round that did not answer: Flower may take a minute to see that they are gone."""

    # ------------------------------------------------------------------ training

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Open the round's session and invite the nodes to it.

        Raises:
            TimeoutError: too few nodes are connected.
            BudgetSpentError: the devices have a privacy budget, and it is spent.

        """
        number = server_round + self._rounds_before
        if self._ended:
            raise BudgetSpentError(f"the run ends before round {number} of {self._config.rounds}: {self._ended}")
        nodes = self._choose(grid, self._config.fraction_train, self._config.quorum or 1)
        self._session = f"run-{self._run}-round-{number}"
        config = ConfigRecord(
            {
                **config,
                **self.device_config(),
                "coordinator": self._coordinator.address,
                "session": self._session,
                "first-step": self._step,
                "steps": self._config.steps_before(number + 1) - self._config.steps_before(number),
                "server-round": number,
            }
        )
        self._invitation = RecordDict({self.arrayrecord_key: arrays, self.configrecord_key: config})
        settings = self._config.session_settings(self._step, len(nodes))
        self._coordinator.create_session(self._session, settings)
        if self._observer is not None:
            self._observer.observe(self._coordinator.address, self._session, settings)
        how = ", and mask what they send" if settings.secure_aggregation else ""
        log.info("round %d: %d devices train %d steps%s", number, len(nodes), config["steps"], how)
        self._invited = {}
        return self._invite(nodes)

    def is_over(self) -> bool:
        """Tell whether the session of the round is over."""
        return self._coordinator.is_over(self._session)

    def invite_latecomers(self, nodes: list[Node]) -> list[Message]:
        """Return invitations to nodes that came, or came back, in the middle of the round."""
        takes_all = self._config.fraction_train == 1
        late = [n for n in nodes if self._invited.get(n.id, None if takes_all else n) != n and n not in self._silent]
        for node in late:
            log.info("node %d comes in the middle of the round", node.id)
        return self._invite(late)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Take the weights that all devices share, and save them.

        Raises:
            RoundFailedError: no device trained, or the devices' weights differ.

        """
        number = server_round + self._rounds_before
        replies = list(replies)
        self.end_session("the round is over")
        contents = [reply.content for reply in replies if not reply.has_error()]
        answered = {reply.metadata.src_node_id for reply in replies}
        self._silent = {node for node in self._invited.values() if node.id not in answered}
        failures = {str(m.metadata.src_node_id): m.error.reason for m in replies if m.has_error()}
        failures |= {str(node.id): "it did not answer" for node in self._silent}
        for node, reason in failures.items():
            log.warning("round %d, node %s: %s", number, node, reason)
        if not contents:
            reasons = "; ".join(f"node {node}: {reason}" for node, reason in failures.items())
            raise RoundFailedError(f"round {number} failed: {reasons or 'no device was there'}")
        contents = self._without_early(contents, number)
        models = {(str(content["report"][DIGEST_KEY]), int(str(content["report"]["step"]))) for content in contents}
        if len(models) > 1:
            raise RoundFailedError(f"round {number}: the devices ended with {len(models)} different models")
        ((_, self._step),) = models
        # Whoever came when all was done trained nothing, and has no loss.
        trained = [content for content in contents if content["metrics"][self.weighted_by_key]]
        metrics = self.train_metrics_aggr_fn(trained, self.weighted_by_key) if trained else MetricRecord()
        if self._is_private and trained:  # the same for all, but for a device that had to pay twice
            metrics["epsilon"] = max(float(str(content["metrics"]["epsilon"])) for content in trained)
        arrays = contents[0].array_records[self.arrayrecord_key]
        self._save_checkpoint(arrays, number)
        entry = {"round": number, "step": self._step, "devices": len(contents), "train": dict(metrics)}
        if self._ended:
            entry["ended"] = self._ended
        self.history.append(entry | ({"failures": failures} if failures else {}))
        self._try_to_save_history()
        return arrays, metrics

    # ------------------------------------------------------------------ evaluation

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Ask the nodes to try the model on their held-out samples; none of those with a privacy budget may answer."""
        if not self._config.fraction_evaluate or self._is_private:
            return []
        number = server_round + self._rounds_before
        config = ConfigRecord({**config, **self.device_config(), "server-round": number})
        record = RecordDict({self.arrayrecord_key: arrays, self.configrecord_key: config})
        return _messages(record, self._choose(grid, self._config.fraction_evaluate, 1), MessageType.EVALUATE)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Add the nodes' results up; those of nodes without held-out samples say nothing."""
        metrics = super().aggregate_evaluate(server_round, [reply for reply in replies if not _is_of_no_sample(reply)])
        if metrics is not None:
            self.history[-1]["evaluate"] = dict(metrics)
            self._try_to_save_history()
        return metrics

    # ------------------------------------------------------------------ around the rounds

    def end_session(self, reason: str) -> None:
        """End the session that is on, if there is one, and release its devices."""
        if self._session:
            self._coordinator.abort(self._session, reason)

    def query(self, grid: Grid) -> ArrayRecord:
        """Ask one node for the initial weights, so that the ServerApp needs no model; the node checks its settings.

        Raises:
            RoundFailedError: the node refuses the settings or does not answer.
            TimeoutError: too few nodes are connected.

        """
        node = self._choose(grid, 1, 1)[0].id
        message = Message(RecordDict({"config": self.device_config()}), node, MessageType.QUERY)
        for reply in grid.send_and_receive([message], timeout=self._config.join_deadline_s):
            if reply.has_error():
                raise RoundFailedError(f"node {node} cannot begin: {reply.error.reason}")
            return reply.content.array_records[self.arrayrecord_key]
        raise RoundFailedError(f"node {node} did not answer within {self._config.join_deadline_s:g} s")

    def device_config(self) -> ConfigRecord:
        """Return what every message to a device carries."""
        return ConfigRecord({"settings": self._settings_json})

    def save_history(self) -> Path:
        """Write what the rounds gave so far, and return the file.

        Raises:
            OSError: it cannot be written.

        """
        return save_history(self.history, self._described, self._config.output)

    def _without_early(self, contents: list[RecordDict], number: int) -> list[RecordDict]:
        """Return what those answered that got furthest; note if the privacy budgets of all are spent."""
        early = {id(content): str(content["report"].get("ended", "")) for content in contents}
        reasons = [reason for reason in early.values() if reason]
        if not reasons:
            return contents
        log.warning("round %d: %d of %d devices end early: %s", number, len(reasons), len(contents), reasons[0])
        if len(reasons) < len(contents):
            return [content for content in contents if not early[id(content)]]
        self._ended = reasons[0]
        furthest = max(int(str(content["report"]["step"])) for content in contents)
        return [content for content in contents if int(str(content["report"]["step"])) == furthest]

    def _save_checkpoint(self, arrays: ArrayRecord, number: int) -> None:
        """Keep a round's weights; where the disk cannot take them the run goes on, as long as a later round may.

        Raises:
            RoundFailedError: those of the last round cannot be written.

        """
        try:
            path = save_checkpoint(arrays, self._config.output, number, self._step, self._config.task)
        except OSError as error:
            text = f"round {number}: {error.filename} cannot be written: {error.strerror or error}"
            if number >= self._config.rounds:
                raise RoundFailedError(f"{text}; what the run gave is lost but for earlier rounds") from None
            log.error("%s; the run goes on without this checkpoint", text)
        else:
            log.info("checkpoint %s", path)

    def _try_to_save_history(self) -> None:
        try:
            self.save_history()
        except OSError as error:
            log.error("%s cannot be written: %s; the run goes on", error.filename, error.strerror or error)

    def _choose(self, grid: Grid, fraction: float, least: int) -> list[Node]:
        config = self._config
        nodes = wait_for_nodes(grid, config.devices, config.least_devices, config.join_deadline_s, self._silent)
        return random.sample(nodes, min(len(nodes), max(least, int(len(nodes) * fraction))))

    def _invite(self, nodes: Collection[Node]) -> list[Message]:
        self._invited |= {node.id: node for node in nodes}
        return _messages(self._invitation, nodes, MessageType.TRAIN)


def _messages(record: RecordDict, nodes: Iterable[Node], message_type: str) -> list[Message]:
    return [Message(record, node.id, message_type) for node in nodes]


def _is_of_no_sample(reply: Message) -> bool:
    return reply.has_content() and not any(
        record.get("num-examples", 1) for record in reply.content.metric_records.values()
    )
