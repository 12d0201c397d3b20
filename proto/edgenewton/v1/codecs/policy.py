"""Which stages a tensor takes: a registry of codecs, what a session chose of it, and the policy that follows.

A new codec is one file and one line in `CODECS`; a new stage before the codec is one file and one line in a policy.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from edgenewton.v1 import MAX_MESSAGE_BYTES
from edgenewton.v1 import exchange_pb2 as pb
from edgenewton.v1.codecs.adaptive import CODEC_OF, Adaptive, FormInUse
from edgenewton.v1.codecs.by_part import ByPart
from edgenewton.v1.codecs.chain import Chain
from edgenewton.v1.codecs.feedback import ErrorFeedback
from edgenewton.v1.codecs.int4 import Int4
from edgenewton.v1.codecs.int8 import Int8
from edgenewton.v1.codecs.interface import Codec, Stage
from edgenewton.v1.codecs.masked import Masked
from edgenewton.v1.codecs.plain import WORTH_IT, Bf16, Fp16, Fp32
from edgenewton.v1.codecs.powersgd import PowerSgd
from edgenewton.v1.codecs.sign import Sign
from edgenewton.v1.codecs.sparse import Sparse1, Sparse2, Sparse4
from edgenewton.v1.codecs.ternary import Ternary
from edgenewton.v1.codecs.topk import TopK
from edgenewton.v1.forms import Form
from edgenewton.v1.tensor_spec import TensorSpec

Recipe = Callable[[TensorSpec], Chain]
"""Makes the chain of a tensor, with a memory of its own."""
Stages = Callable[[TensorSpec], Sequence[Stage[Any, Any]]]
"""Gives the stages that a device puts before the codec of a tensor."""

_FEW = 64
"""A delta of fewer elements than this costs as much in four bits as in bf16, because of the slice's header."""
MAX_WHOLE_ELEMENTS = 1 << 24
"""Larger tensors are sliced, however few bytes they take: nobody works on 64 MiB of float32 at once."""


@dataclass(frozen=True)
class Policy:
    """How each kind of tensor is written; a delta as a gradient."""

    gradient: Recipe
    curvature: Recipe
    parameter: Recipe
    in_use: FormInUse = field(default_factory=FormInUse)
    """In which form deltas are written by all chains that it makes, where that may change; reading does not ask."""

    def chain_for(self, spec: TensorSpec) -> Chain:
        """Return a new chain for one tensor."""
        recipes = {
            "gradient": self.gradient,
            "delta": self.gradient,
            "curvature": self.curvature,
            "parameter": self.parameter,
            "weight": self.parameter,
            "noised": self.parameter,
        }
        return recipes[spec.kind](spec)


@dataclass(frozen=True)
class CodecChoice:
    """What a session chose: a codec with its parameters."""

    name: str = "auto"
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
        bare = CODECS[self.name](self)
        return ErrorFeedback(bare) if bare.needs_feedback else bare

    def numbers(self, fingerprint: Iterable[TensorSpec]) -> set[pb.Codec]:
        """Return which codecs, by number, a device must know for its tensors."""
        if self.name != "auto":
            return {CODEC_NUMBERS[self.name]}
        return {self._bare_for(spec).number for spec in fingerprint if spec.kind == "delta"} | {pb.CODEC_FP32}

    @property
    def has_forms(self) -> bool:
        """Whether the session may choose in which form moves are written."""
        return isinstance(CODECS[self.name](self), Adaptive)

    def form_sizes(self, fingerprint: Iterable[TensorSpec]) -> dict[Form, int]:
        """Return how many bytes the tensors of an exchange of moves take in each form; nothing if there is no choice.

        Curvature and weights are not counted: they travel seldom.
        """
        specs = tuple(fingerprint)
        codecs = [(spec, self._bare_for(spec)) for spec in specs if spec.kind == "delta"]
        if not any(isinstance(codec, Adaptive) for _, codec in codecs):
            return {}
        buffers = sum(4 * spec.size for spec in specs if spec.kind == "parameter")
        return {
            form: buffers
            + sum((own if isinstance(codec, Adaptive) else codec).encoded_size(spec.shape) for spec, codec in codecs)
            for form, own in CODEC_OF.items()
        }

    def takes_whole(self, spec: TensorSpec) -> bool:
        """Tell whether a gradient or a delta is one slice, for devices and the coordinator alike.

        A delta is, and so is a gradient in blocks of few levels, unless it would not fit into half a message.
        """
        codec = self._bare_for(spec)
        if codec.takes_whole_tensors:
            return True
        is_wanted = spec.kind == "delta" or (codec.needs_feedback and codec.is_quantised)
        fits = spec.size <= MAX_WHOLE_ELEMENTS and codec.encoded_size(spec.shape) <= MAX_MESSAGE_BYTES // 2
        return is_wanted and fits

    def takes_stages(self, spec: TensorSpec) -> bool:
        """Tell whether a device's own stages are worth it, and possible: for tensors in one piece that lose much."""
        return self._bare_for(spec).needs_feedback and self.takes_whole(spec)

    def policy(self, stages: Stages = lambda _spec: ()) -> Policy:
        """Return which tensors the codec is safe for, and what the others take.

        Parameters always travel exactly: their mean replaces them, and what rounding takes away would be lost in
        every average. Curvature travels in fp32 or bf16, because an inverse magnifies errors and error feedback would
        mix the statistics of different steps; beside a codec of a byte or less, in int8 if it is large. Gradients and
        deltas that a compressing codec cannot make smaller than bf16, or that are too few to be worth it, travel in
        bf16.

        Args:
            stages: what a device does to a gradient or a delta before the codec, within its error feedback if it has
                one. A coordinator has none: it adds what the devices' stages gave, and encodes the mean of it. So a
                stage must be linear, keep the shape, and be the same on all devices in a step; and one that takes
                whole tensors is only for those of which `takes_whole` is true, because slices must coincide. It is
                asked anew for each chain.

        """
        in_use = FormInUse()

        def gradient(spec: TensorSpec) -> Chain:
            codec, own, is_whole = self._bare_for(spec, in_use), stages(spec), self.takes_whole(spec)
            if not is_whole and any(stage.takes_whole_tensors for stage in own):
                raise ValueError(f"the {spec} is sliced as {codec.name}: no stage can have it whole")
            if codec.needs_feedback:
                return Chain(codec=ErrorFeedback(codec, *own), is_whole=is_whole)
            return Chain(*own, codec=codec, is_whole=is_whole)

        return Policy(
            gradient=gradient,
            curvature=lambda spec: Chain(codec=self._curvature_codec(spec)),
            parameter=lambda _spec: Chain(codec=Fp32()),
            in_use=in_use,
        )

    def masked_policy(self) -> Policy:
        """Return how devices write with secure aggregation; slices are those of `policy`, as which sums come back."""

        def masked(spec: TensorSpec) -> Chain:
            return Chain(codec=Masked(), is_whole=self.policy().chain_for(spec).takes_whole_tensors)

        return Policy(masked, masked, masked)

    def _bare_for(self, spec: TensorSpec, in_use: FormInUse | None = None) -> Codec:
        """Return what writes a gradient or a delta, without feedback."""
        codec = CODECS[self.name](self)
        if isinstance(codec, Adaptive):
            codec = Adaptive(in_use or FormInUse()) if spec.kind == "delta" else Fp32()
        if codec.takes_whole_tensors and spec.parts:
            return ByPart(codec, [(part, self._bare_for(part)) for part in spec.parts])
        if codec.suits(spec):
            return codec
        if spec.kind == "delta" and spec.size >= _FEW and codec.is_quantised:
            return Int4() if codec.needs_feedback else codec
        return Bf16()

    def _curvature_codec(self, spec: TensorSpec) -> Codec:
        codec = CODECS[self.name](self)
        if codec.is_exact or isinstance(codec, Adaptive):
            return Fp32()
        return Int8() if codec.is_narrow and spec.size >= WORTH_IT else Bf16()


CODECS: Mapping[str, Callable[[CodecChoice], Codec]] = {
    "auto": lambda _: Adaptive(FormInUse()),  # for deltas; all else in fp32
    "fp32": lambda _: Fp32(),
    "bf16": lambda _: Bf16(),
    "fp16": lambda _: Fp16(),
    "int8": lambda _: Int8(),
    "powersgd": lambda choice: PowerSgd(max(1, choice.powersgd_rank)),
    "topk": lambda choice: TopK(choice.topk_fraction),
    "int4": lambda _: Int4(),
    "ternary": lambda _: Ternary(),
    "sign": lambda _: Sign(),
    "sparse4": lambda choice: Sparse4(choice.topk_fraction),
    "sparse2": lambda choice: Sparse2(choice.topk_fraction),
    "sparse1": lambda choice: Sparse1(choice.topk_fraction),
}
"""All codecs without their error feedback, by the name that users choose them by."""
CODEC_NUMBERS: Mapping[str, pb.Codec] = {name: make(CodecChoice()).number for name, make in CODECS.items()}
"""Their numbers on the wire."""
