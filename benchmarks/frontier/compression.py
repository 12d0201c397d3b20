"""How a sender makes its tensors smaller, and remembers what that has left out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from edgenewton.v1.codecs import Codec, CodecChoice, Context, Float32Array
from edgenewton.v1.codecs.feedback import ErrorFeedback
from edgenewton.v1.codecs.int8 import Int8
from edgenewton.v1.codecs.plain import WORTH_IT
from edgenewton.v1.tensor_spec import TensorSpec
from torch import Tensor

from benchmarks.frontier.interface import DivergedError

_JOINED = "small tensors"
Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Compression:
    """A codec with its parameters, and what becomes of its error."""

    codec: str = "fp32"
    rank: int = 1
    """Of PowerSGD."""
    fraction: float = 0.01
    """Of the elements that a sparse codec keeps."""
    decay: float = 1.0
    """What part of the error is sent later; below 1, old errors are forgotten."""

    @property
    def is_exact(self) -> bool:
        """Whether what arrives is what was sent."""
        return self._named().is_exact

    def codec_for(self, spec: TensorSpec) -> Codec:
        """Return a codec for one tensor, without error feedback: int8 where the chosen one does not suit it."""
        codec = self._named()
        return codec if codec.suits(spec) else Int8()

    def _named(self) -> Codec:
        codec = CodecChoice(self.codec, powersgd_rank=self.rank, topk_fraction=self.fraction).codec()
        return codec.codec if isinstance(codec, ErrorFeedback) else codec


class Sender:
    """One end of one direction: a device's way up, or the server's down.

    Tensors too small for a codec to be worth it are joined to one, which is compressed like a large one: or they would
    take most of the bytes of a model whose matrices take a bit or less for an element.
    """

    def __init__(self, compression: Compression) -> None:
        self._compression = compression
        self._memories: dict[str, _Memory] = {}

    def send(self, tensors: Tensors) -> tuple[Tensors, int]:
        """Return what arrives, and how many bytes it took.

        Raises:
            DivergedError: a tensor is not finite.

        """
        # A sum is not finite where an element is not; where it overflows alone, the training is lost as well.
        if not all(bool(tensor.sum().isfinite()) for tensor in tensors.values()):
            raise DivergedError("a tensor that is to be sent is not finite")
        if self._compression.is_exact:
            return tensors, 4 * sum(tensor.numel() for tensor in tensors.values())
        small = {name: tensor for name, tensor in tensors.items() if tensor.numel() < WORTH_IT}
        arrived, total = {}, 0
        for name, tensor in tensors.items():
            if name not in small:
                arrived[name], sent = self._send_one(name, tensor)
                total += sent
        if small:
            joined, sent = self._send_one(_JOINED, torch.cat([tensor.flatten() for tensor in small.values()]))
            total += sent
            parts = torch.split(joined, [tensor.numel() for tensor in small.values()])
            arrived |= {name: part.view_as(small[name]) for name, part in zip(small, parts, strict=True)}
        return arrived, total

    def _send_one(self, name: str, tensor: Tensor) -> tuple[Tensor, int]:
        if name not in self._memories:
            spec = TensorSpec(name, tuple(tensor.shape))
            self._memories[name] = _Memory(self._compression.codec_for(spec), spec, self._compression.decay)
        values, sent = self._memories[name].send(tensor.detach().flatten().numpy())
        return torch.from_numpy(values).view_as(tensor), sent


class MeanExchange:
    """Devices send tensors to a server, which sends their mean back; each sender compresses with its own memory."""

    def __init__(self, compression: Compression, devices: int) -> None:
        self._devices = [Sender(compression) for _ in range(devices)]
        self._server = Sender(compression)

    def mean(self, of_devices: Sequence[Tensors]) -> tuple[Tensors, float, float]:
        """Return the mean as it arrives at every device, and the bytes of a device up and down.

        Raises:
            DivergedError: a tensor is not finite.

        """
        came = [sender.send(tensors) for sender, tensors in zip(self._devices, of_devices, strict=True)]
        mean = {name: torch.stack([tensors[name] for tensors, _ in came]).mean(dim=0) for name in of_devices[0]}
        arrived, down = self._server.send(mean)
        return arrived, sum(up for _, up in came) / len(came), down


class _Memory:
    """A tensor's codec, and the error that is still to be sent."""

    def __init__(self, codec: Codec, spec: TensorSpec, decay: float) -> None:
        self._codec = codec
        self._context = Context(spec, spec.shape)
        self._decay = np.float32(decay)
        self._error = np.zeros(spec.size, dtype=np.float32)

    def send(self, values: Float32Array) -> tuple[Float32Array, int]:
        """Return the values as they arrive, and their bytes."""
        wanted = values + self._decay * self._error
        data = self._codec.encode(wanted, self._context)
        decoded = self._codec.decode(data, self._context)
        np.subtract(wanted, decoded, out=self._error)
        # torch wants memory that may be written.
        return np.require(decoded, np.float32, ["C", "W"]), memoryview(data).nbytes
