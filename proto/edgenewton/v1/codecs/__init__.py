"""Tensor codecs: how the elements of a tensor are written on the wire. A new codec is one class and one number."""

from collections.abc import Mapping
from dataclasses import dataclass

from edgenewton.v1 import MAX_MESSAGE_BYTES
from edgenewton.v1 import exchange_pb2 as pb
from edgenewton.v1.codecs.int8 import Int8
from edgenewton.v1.codecs.interface import Codec, Data, Encoder, Float32Array, Shape
from edgenewton.v1.codecs.plain import Bf16, Fp16, Fp32
from edgenewton.v1.codecs.powersgd import PowerSgd
from edgenewton.v1.codecs.topk import TopK
from edgenewton.v1.tensor_spec import TensorSpec

__all__ = ["CODEC_NUMBERS", "Codec", "CodecChoice", "Data", "Encoder", "Float32Array", "Shape"]

CODEC_NUMBERS: Mapping[str, pb.Codec] = {
    codec.name: codec.number for codec in (Fp32(), Bf16(), Fp16(), Int8(), PowerSgd(1), TopK(1))
}
"""All codecs, by the name that users choose them by."""

_FP32, _BF16 = Fp32(), Bf16()
_SMALL = 1024
"""Gradients of fewer elements cost little in bf16, and lose much in top-k."""


@dataclass(frozen=True)
class CodecChoice:
    """A session's codec with its parameters, and the rule which tensors it suits."""

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
        """Return the session's codec itself."""
        codecs: tuple[Codec, ...] = (
            _FP32,
            _BF16,
            Fp16(),
            Int8(),
            PowerSgd(max(1, self.powersgd_rank)),
            TopK(self.topk_fraction),
        )
        return next(codec for codec in codecs if codec.name == self.name)

    def codec_for(self, spec: TensorSpec) -> Codec:
        """Return the codec of one tensor.

        Parameters always travel exactly: their mean replaces them, and what rounding takes away would be lost in
        every average. Curvature travels in fp32 or bf16 only, because an inverse magnifies errors and error feedback
        would mix the statistics of different steps. Gradients that a compressing codec cannot make smaller than bf16,
        or that are too few to be worth it, travel in bf16.
        """
        codec = self.codec()
        if spec.kind == "parameter" or codec is _FP32:
            return _FP32
        if spec.kind == "curvature":
            return _BF16
        if isinstance(codec, TopK):
            return codec if spec.size >= _SMALL else _BF16
        if isinstance(codec, PowerSgd):
            size = codec.encoded_size(spec.shape)
            is_worth_it = spec.size >= _SMALL and size < _BF16.encoded_size(spec.shape)
            return codec if is_worth_it and size <= MAX_MESSAGE_BYTES // 2 else _BF16
        return codec
