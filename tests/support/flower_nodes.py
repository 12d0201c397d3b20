"""The nodes of a Flower run in this process: each answers in a thread of its own, as Flower's ClientApp does."""

import itertools
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

from client_app_calls import context
from flwr.app import Message
from flwr.serverapp import Grid

from edge_client import client_app

_HANDLERS = {"query": client_app.query, "train": client_app.train, "evaluate": client_app.evaluate_model}


class LocalNodes(Grid):
    """A grid of nodes that are all there from the beginning to the end; use it in a `with` block."""

    def __init__(self, count, **node_config):
        self.count = count
        self.asked = []
        self.answers = []
        self._contexts = {
            n: context(**{"partition-id": n, "num-partitions": count} | node_config) for n in range(count)
        }
        self._numbers = map(str, itertools.count(1))
        self._waiting = {}
        self._pool = ThreadPoolExecutor(count)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._pool.shutdown()

    def push_messages(self, messages):
        numbers = []
        for message in messages:
            number = message.metadata.__dict__["_message_id"] = next(self._numbers)
            kind = message.metadata.message_type
            self.asked.append(kind)
            given = self._contexts[message.metadata.dst_node_id]
            self._waiting[number] = self._pool.submit(_HANDLERS[kind], message, given)
            numbers.append(number)
        return numbers

    def pull_messages(self, message_ids):
        done = [number for number in message_ids if self._waiting[number].done()]
        replies = [self._waiting.pop(number).result() for number in done]
        self.answers += replies
        return replies

    def get_nodes(self):
        return [SimpleNamespace(node_id=n, last_activated_at="now") for n in range(self.count)]

    def get_node_ids(self):
        return range(self.count)

    def send_and_receive(self, messages, *, timeout=None):
        waiting = set(self.push_messages(messages))
        replies = []
        while waiting:
            came = self.pull_messages(waiting)
            waiting -= {reply.metadata.reply_to_message_id for reply in came}
            replies += came
        return replies

    run = None

    def set_run(self, run):
        raise NotImplementedError

    def create_message(self, content, message_type, dst_node_id, group_id, ttl=None):
        return Message(content, dst_node_id, message_type)
