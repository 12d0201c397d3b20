"""Centred clipping (Karimireddy, He & Jaggi 2021, "Learning from History", arxiv.org/abs/2012.10333)."""

import numpy as np
from edgenewton.v1.codecs import Float32Array

from coordinator.session.robust.memory import RunningMeans
from coordinator.session.robust.rule import Outcome, RobustRule, Stack
from coordinator.session.robust.vectors import combination, gram

MOMENTUM = 0.9
ITERATIONS = 3


class CentredClipping(RobustRule):
    """From the last result v on, adds the mean of the devices' momenta m - v, none of them longer than a radius.

        m_i = 0.9 m_i + 0.1 x_i,    v = v + sum_i w_i (m_i - v) min(1, r / |m_i - v|), three times

    The momenta are those of the paper's section 4, kept here because devices send plain vectors, and divided by 1 -
    0.9^t. The paper leaves the radius r to the user; here it is the median of the devices' distances |m_i - v|.
    The result is a momentum itself, and lags behind: an optimizer's own on top of it should be smaller.
    """

    copies = 2

    def __init__(self) -> None:
        self._momenta = RunningMeans(MOMENTUM)
        self._centre: list[Float32Array] = []

    def combine(self, stack: Stack) -> Outcome:
        """Return the new centre."""
        self._momenta.add(stack.devices, stack.vectors, np.ones(len(stack.devices)))
        lengths = [len(piece) for piece in stack.vectors[0]]
        if [len(piece) for piece in self._centre] != lengths:
            self._centre = [np.zeros(length, np.float32) for length in lengths]
        vectors = [*self._momenta.vectors(stack.devices), self._centre]
        # All stays in the span of momenta and centre: their inner products say everything. A row of `momenta` and
        # `centre` are coefficients of the vectors.
        products = gram(vectors)
        momenta = np.eye(len(stack.devices), len(vectors)) / self._momenta.corrections(stack.devices)[:, None]
        centre = np.zeros(len(vectors))
        centre[-1] = 1.0
        for _ in range(ITERATIONS):
            away = momenta - centre
            norms = np.sqrt(np.maximum(np.einsum("ij,jk,ik->i", away, products, away), 0.0))
            radius = float(np.median(norms))
            with np.errstate(divide="ignore", invalid="ignore"):
                scales = np.where(norms > radius, radius / norms, 1.0)
            centre = centre + (stack.weights * scales) @ away
        self._centre = combination(vectors, centre)
        return Outcome([piece.copy() for piece in self._centre])
