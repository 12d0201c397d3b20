"""The nodes of a Flower run: which there are, and a grid that lets them come and go while a round is on."""

import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid

POLL_S = 0.2
_LOOK_FOR_NODES_EVERY_S = 2.0
FAREWELL_S = 15.0
"""Seconds after the end of a session in which the devices' replies arrive: a SuperNode looks for news every 3 s."""


@dataclass(frozen=True, order=True)
class Node:
    """A node, from its start to its end; one that is started again is another."""

    id: int
    activated_at: str


def online(grid: Grid) -> list[Node]:
    """Return the nodes that are connected; Flower misses one that was killed only after a minute."""
    return sorted(Node(info.node_id, info.last_activated_at) for info in grid.get_nodes())


def wait_for_nodes(grid: Grid, count: int, least: int, deadline_s: float, without: Collection[Node]) -> list[Node]:
    """Return the connected nodes once there are `count` of them, or at the deadline if there are `least`.

    Args:
        grid: where they are.
        count: how many to wait for.
        least: with how many to go on at the deadline.
        deadline_s: seconds to wait.
        without: nodes that do not count.

    Raises:
        TimeoutError: there are too few.

    """
    deadline = time.monotonic() + deadline_s
    while True:
        nodes = [node for node in online(grid) if node not in without]
        is_late = time.monotonic() > deadline
        if len(nodes) >= count or (is_late and len(nodes) >= least):
            return nodes
        if is_late:
            raise TimeoutError(
                f"{len(nodes)} of {count} devices are connected after {deadline_s:g} s. In the simulation engine all "
                f'must run at once: flwr run . --federation-config "num-supernodes={count} '
                f'client-resources-num-cpus=1 init-args-num-cpus={count}"'
            )
        time.sleep(POLL_S)


class Round(Protocol):
    """A round of training that is on."""

    def is_over(self) -> bool:
        """Tell whether nothing is left to be done in it."""

    def invite_latecomers(self, nodes: list[Node]) -> list[Message]:
        """Return messages to those of the connected nodes that came, or came back, in the middle of it."""


class OpenGrid(Grid):
    """A grid on which nodes may come and go during a round of training, and nobody waits for those that are gone.

    Args:
        grid: Flower's own.
        round_: the round of training that is on.

    """

    def __init__(self, grid: Grid, round_: Round) -> None:
        self._grid = grid
        self._round = round_

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Send messages and return the replies that came until the timeout, or until the round was over."""
        messages = list(messages)
        is_training = bool(messages) and messages[0].metadata.message_type == MessageType.TRAIN
        waiting = self._push(messages)
        replies: list[Message] = []
        now = time.monotonic()
        deadline = now + timeout if timeout is not None else float("inf")
        look_at, over_at = now, float("inf")
        while waiting and now < min(deadline, over_at + FAREWELL_S):
            for reply in self._grid.pull_messages(waiting):
                replies.append(reply)
                waiting.discard(reply.metadata.reply_to_message_id)
            if is_training and waiting and now >= look_at:
                look_at = now + _LOOK_FOR_NODES_EVERY_S
                if self._round.is_over():
                    over_at = min(over_at, now)
                else:
                    waiting |= self._push(self._round.invite_latecomers(online(self._grid)))
            if waiting:
                time.sleep(POLL_S)
            now = time.monotonic()
        return replies

    def _push(self, messages: list[Message]) -> set[str]:
        return {identity for identity in self._grid.push_messages(messages) if identity} if messages else set()

    # ------------------------------------------------------------------ as it is in Flower's own

    @property
    def run(self) -> Any:
        """The run."""
        return self._grid.run

    def set_run(self, run: Any) -> None:
        """Set the run."""
        self._grid.set_run(run)

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Return a message."""
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        """Return the ids of the connected nodes."""
        return self._grid.get_node_ids()

    def get_nodes(self) -> Iterable[Any]:
        """Return what is known of the connected nodes."""
        return self._grid.get_nodes()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages."""
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that are there."""
        return self._grid.pull_messages(message_ids)
