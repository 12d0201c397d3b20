"""How the elements of a tensor are written on the wire: stages, the chains that they make, and who takes which."""

from edgenewton.v1.codecs.adaptive import form_from_proto, form_to_proto
from edgenewton.v1.codecs.chain import Chain
from edgenewton.v1.codecs.interface import Codec, Context, Data, Float32Array, Shape, Stage, State
from edgenewton.v1.codecs.policy import CODEC_NUMBERS, CodecChoice, Policy

__all__ = [
    "CODEC_NUMBERS",
    "Chain",
    "Codec",
    "CodecChoice",
    "Context",
    "Data",
    "Float32Array",
    "Policy",
    "Shape",
    "Stage",
    "State",
    "form_from_proto",
    "form_to_proto",
]
