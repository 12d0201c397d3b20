"""Kinds of machines, as processes of one: another instruction set, more threads, or another precision."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Machine:
    """What sets a device's arithmetic apart."""

    name: str
    environment: Mapping[str, str] = field(default_factory=dict)
    threads: int = 1
    uses_bfloat16: bool = False
    """Whether the model runs in autocast with bfloat16."""


USUAL = Machine("AVX-512 or AVX2")
BASELINE = Machine("SSE4.2", {"ATEN_CPU_CAPABILITY": "default", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"})
AVX2 = Machine("AVX2", {"ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"})
TWO_THREADS = Machine("two threads", threads=2)
BFLOAT16 = Machine("bfloat16 autocast", uses_bfloat16=True)

ALIKE = (USUAL, USUAL, USUAL, USUAL)
FLOAT32 = (USUAL, BASELINE, TWO_THREADS, USUAL)
MIXED = (USUAL, BASELINE, TWO_THREADS, BFLOAT16)
