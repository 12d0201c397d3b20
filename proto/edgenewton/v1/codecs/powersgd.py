"""PowerSGD: a gradient matrix as the product of two thin factors, found by one power iteration a step.

Vogels, Karimireddy & Jaggi 2019, "PowerSGD: Practical Low-Rank Gradient Compression for Distributed Optimization"
(https://arxiv.org/abs/1905.13727), algorithm 1, with its warm start and error feedback. There all workers average
both factors, in two rounds; here, in a star, each sender compresses its own matrix in one round: the devices theirs,
the coordinator the mean. What a sum of rank-r matrices loses on the way down is in the coordinator's error feedback.
"""

import math

import numpy as np

from edgenewton.v1 import exchange_pb2 as pb
from edgenewton.v1.codecs.feedback import ErrorFeedback
from edgenewton.v1.codecs.interface import Data, Float32Array, Shape, check_size
from edgenewton.v1.codecs.plain import Bf16

_BF16 = Bf16()


def matrix_shape(shape: Shape) -> tuple[int, int]:
    """Return the shape of a tensor as a matrix: its first dimension by all others."""
    return (shape[0], math.prod(shape[1:])) if shape else (1, 1)


class PowerSgd:
    """M ≈ P Q^T with P `[rows, rank]` orthonormal and Q `[columns, rank]`, both in bf16."""

    name = "powersgd"
    number = pb.CODEC_POWERSGD
    takes_whole_tensors = True

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def encoded_size(self, shape: Shape) -> int:
        """Return 2 bytes for each element of both factors."""
        rows, columns = matrix_shape(shape)
        return 2 * self._rank(shape) * (rows + columns)

    def encoder(self, shape: Shape) -> ErrorFeedback:
        """Return an encoder with warm start and error feedback."""
        return ErrorFeedback(self, _PowerIteration(matrix_shape(shape), self._rank(shape)), shape)

    def decode(self, data: Data, shape: Shape) -> Float32Array:
        """Return P Q^T."""
        check_size(self, data, shape)
        rows, columns = matrix_shape(shape)
        rank = self._rank(shape)
        factors = _BF16.decode(data, (rank * (rows + columns),))
        P, Q = factors[: rows * rank].reshape(rows, rank), factors[rows * rank :].reshape(columns, rank)
        with np.errstate(over="ignore", invalid="ignore"):  # factors that lie are found by the receiver's check
            return (P @ Q.T).ravel()

    def _rank(self, shape: Shape) -> int:
        return min(self.rank, *matrix_shape(shape))


class _PowerIteration:
    def __init__(self, shape: tuple[int, int], rank: int) -> None:
        self._shape = shape
        # Any start will do; the same one everywhere keeps runs repeatable.
        self._Q = np.random.default_rng(0).standard_normal((shape[1], rank), dtype=np.float32)

    def encode(self, values: Float32Array) -> Data:
        M = values.reshape(self._shape)
        P, _ = np.linalg.qr(M @ self._Q)
        self._Q = M.T @ P
        factors = np.concatenate([P.ravel(), self._Q.ravel()]).astype(np.float32, copy=False)
        return _BF16.encode(factors)
