"""PowerSGD: a gradient matrix as the product of two thin factors, found by one power iteration a step.

Vogels, Karimireddy & Jaggi 2019, "PowerSGD: Practical Low-Rank Gradient Compression for Distributed Optimization"
(https://arxiv.org/abs/1905.13727), algorithm 1, with its warm start and error feedback. There all workers average
both factors, in two rounds; here, in a star, each sender compresses its own matrix in one round: the devices theirs,
the coordinator the mean. What a sum of rank-r matrices loses on the way down is in the coordinator's error feedback.
"""

import math

import numpy as np

from edgenewton.v1 import MAX_MESSAGE_BYTES
from edgenewton.v1 import exchange_pb2 as pb
from edgenewton.v1.codecs.interface import Codec, Context, Data, Float32Array, Shape, State
from edgenewton.v1.codecs.plain import WORTH_IT, Bf16, from_bf16, to_bf16
from edgenewton.v1.tensor_spec import TensorSpec


def matrix_shape(shape: Shape) -> tuple[int, int]:
    """Return the shape of a tensor as a matrix: its first dimension that is not 1 by all others.

    A layer's moves are `[blocks, out, in]`, mostly with one block: a matrix of one row would have no use for factors.
    """
    while len(shape) > 2 and shape[0] == 1:
        shape = shape[1:]
    return (shape[0], math.prod(shape[1:])) if shape else (1, 1)


class PowerSgd(Codec):
    """M ≈ P Q^T with P `[rows, rank]` orthonormal and Q `[columns, rank]`, both in bf16."""

    name = "powersgd"
    number = pb.CODEC_POWERSGD
    takes_whole_tensors = True
    needs_feedback = True

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self._Q: Float32Array | None = None
        """The last step's, which the next one starts from."""

    def encoded_size(self, shape: Shape) -> int:
        """Return 2 bytes for each element of both factors."""
        rows, columns = matrix_shape(shape)
        return 2 * self._rank(shape) * (rows + columns)

    def suits(self, spec: TensorSpec) -> bool:
        """Tell whether the factors are smaller than the matrix in bf16, and fit into a message."""
        size = self.encoded_size(spec.shape)
        return spec.size >= WORTH_IT and size < Bf16().encoded_size(spec.shape) and size <= MAX_MESSAGE_BYTES // 2

    def encode(self, x: Float32Array, context: Context) -> Data:
        """Return P and Q after one power iteration."""
        M = x.reshape(matrix_shape(context.shape))
        shape = (M.shape[1], self._rank(context.shape))
        if self._Q is None or self._Q.shape != shape:  # the rank may have changed during the session
            # Any start will do; the same one everywhere keeps runs repeatable.
            self._Q = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
        P, _ = np.linalg.qr(M @ self._Q)
        self._Q = M.T @ P
        return to_bf16(np.concatenate([P.ravel(), self._Q.ravel()]).astype(np.float32, copy=False))

    def decode(self, data: Data, context: Context) -> Float32Array:
        """Return P Q^T."""
        self.check_size(data, context.shape)
        rows, columns = matrix_shape(context.shape)
        rank = self._rank(context.shape)
        factors = from_bf16(data)
        P, Q = factors[: rows * rank].reshape(rows, rank), factors[rows * rank :].reshape(columns, rank)
        with np.errstate(over="ignore", invalid="ignore"):  # factors that lie are found by the receiver's check
            return (P @ Q.T).ravel()

    def state_dict(self) -> State:
        """Return the warm start."""
        return {} if self._Q is None else {"Q": self._Q}

    def load_state_dict(self, state: State) -> None:
        """Start where another sender was."""
        self._Q = np.array(state["Q"], dtype=np.float32) if state else None

    def _rank(self, shape: Shape) -> int:
        return min(self.rank, *matrix_shape(shape))
