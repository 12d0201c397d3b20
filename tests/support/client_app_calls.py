"""Calls Flower's ClientApp in this process, as Flower calls it."""

import json

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from coordinator.serving.server import embedded_coordinator
from coordinator.session.settings import SessionSettings
from edge_client import client_app

SETTINGS = {"cadence": "every-batch", "curvature": "eva", "batch-size": 16, "threads": 1}


def context(**node_config) -> Context:
    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 7, 1, 1  # as Flower does in a node's process
    return Context(
        run_id=7,
        node_id=1,
        node_config={"partition-id": 0, "num-partitions": 1} | node_config,
        state=RecordDict(),
        run_config={},
    )


def ask(kind, given, weights=None, **config):
    content = RecordDict({"config": ConfigRecord({"settings": json.dumps(SETTINGS)} | config)})
    if weights is not None:
        content["arrays"] = ArrayRecord(weights)
    handler = {"query": client_app.query, "train": client_app.train, "evaluate": client_app.evaluate_model}[kind]
    return handler(Message(content, dst_node_id=1, message_type=kind), given)


def rounds(given, gate=None):
    """Train 3 + 2 steps, in two messages, and evaluate; return the last reply's weights, digest and evaluation."""
    weights = ask("query", given).content.array_records["arrays"].to_torch_state_dict()
    with embedded_coordinator(gate=gate) as coordinator:
        for session, first, steps in (("round-1", 0, 3), ("round-2", 3, 2)):
            coordinator.create_session(session, SessionSettings(devices=1, first_step=first))
            place = {"coordinator": coordinator.address, "session": session, "first-step": first, "steps": steps}
            reply = ask("train", given, weights, **place)
            assert not reply.has_error(), reply.error.reason
            weights = reply.content.array_records["arrays"].to_torch_state_dict()
    evaluation = ask("evaluate", given, weights).content.metric_records["metrics"]
    return weights, reply.content["report"]["weights-digest"], evaluation
