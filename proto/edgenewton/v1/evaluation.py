"""Evaluations on the wire. Apart from the class itself, which those use too who know nothing of protobuf."""

from edgenewton.common.evaluation import Evaluation
from edgenewton.v1 import exchange_pb2 as pb


def evaluation_to_proto(evaluation: Evaluation | None) -> pb.Evaluation | None:
    """Return the message for an evaluation, if there is one."""
    if evaluation is None:
        return None
    return pb.Evaluation(correct=evaluation.correct, samples=evaluation.samples, loss=evaluation.loss)


def evaluation_from_proto(message: pb.Evaluation) -> Evaluation:
    """Return the evaluation in a message."""
    return Evaluation(message.correct, message.samples, message.loss)
