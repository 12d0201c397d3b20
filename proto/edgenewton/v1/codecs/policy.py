"""Which stages a tensor takes: a registry of codecs, what a session chose of it, and the policy that follows.

A new codec is one file and one line in `CODECS`; a new stage before the codec is one file and one line in a policy.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from edgenewton.v1 import exchange_pb2 as pb
from edgenewton.v1.codecs.chain import Chain
from edgenewton.v1.codecs.feedback import ErrorFeedback
from edgenewton.v1.codecs.int8 import Int8
from edgenewton.v1.codecs.interface import Codec
from edgenewton.v1.codecs.plain import Bf16, Fp16, Fp32
from edgenewton.v1.codecs.powersgd import PowerSgd
from edgenewton.v1.codecs.topk import TopK
from edgenewton.v1.tensor_spec import TensorSpec

Recipe = Callable[[TensorSpec], Chain]
"""Makes the chain of a tensor, with a memory of its own."""


@dataclass(frozen=True)
class Policy:
    """How each kind of tensor is written."""

    gradient: Recipe
    curvature: Recipe
    parameter: Recipe

    def chain_for(self, spec: TensorSpec) -> Chain:
        """Return a new chain for one tensor."""
        recipes = {"gradient": self.gradient, "curvature": self.curvature, "parameter": self.parameter}
        return recipes[spec.kind](spec)


@dataclass(frozen=True)
class CodecChoice:
    """What a session chose: a codec with its parameters."""

    name: str = "fp32"
    powersgd_rank: int = 4
    topk_fraction: float = 0.01

    @classmethod
    def from_proto(cls, settings: pb.ExchangeSettings) -> "CodecChoice":
        """Return what a coordinator has set.

        Raises:
            ValueError: it has set a codec that this release does not know.

        """
        for name, number in CODEC_NUMBERS.items():
            if number == settings.codec:
                return cls(name, settings.powersgd_rank, settings.topk_fraction)
        raise ValueError(f"unknown codec {settings.codec}; known are {', '.join(CODEC_NUMBERS)}")

    def codec(self) -> Codec:
        """Return the session's codec itself, with no memory yet."""
        return CODECS[self.name](self)

    def policy(self) -> Policy:
        """Return which tensors the codec is safe for, and what the others take.

        Parameters always travel exactly: their mean replaces them, and what rounding takes away would be lost in
        every average. Curvature travels in fp32 or bf16 only, because an inverse magnifies errors and error feedback
        would mix the statistics of different steps. Gradients that a compressing codec cannot make smaller than bf16,
        or that are too few to be worth it, travel in bf16.
        """

        def gradient(spec: TensorSpec) -> Chain:
            codec = self.codec()
            return Chain(codec=codec if codec.suits(spec) else Bf16())

        return Policy(
            gradient=gradient,
            curvature=lambda _spec: Chain(codec=Fp32() if self.codec().is_exact else Bf16()),
            parameter=lambda _spec: Chain(codec=Fp32()),
        )


CODECS: Mapping[str, Callable[[CodecChoice], Codec]] = {
    "fp32": lambda _: Fp32(),
    "bf16": lambda _: Bf16(),
    "fp16": lambda _: Fp16(),
    "int8": lambda _: Int8(),
    "powersgd": lambda choice: ErrorFeedback(PowerSgd(max(1, choice.powersgd_rank))),
    "topk": lambda choice: ErrorFeedback(TopK(choice.topk_fraction)),
}
"""All codecs, by the name that users choose them by."""
CODEC_NUMBERS: Mapping[str, pb.Codec] = {name: make(CodecChoice()).number for name, make in CODECS.items()}
"""Their numbers on the wire."""
