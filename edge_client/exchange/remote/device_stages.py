"""What a device does to its tensors before they are written, and undoes when it takes the means of a step."""

from collections.abc import Sequence
from typing import Any

from edgenewton.v1.codecs import CodecChoice, Context, Float32Array, Policy, Stage
from edgenewton.v1.tensor_spec import TensorSpec

from edge_client.exchange.interface import Stages


class DeviceStages:
    """The stages of the tensors that travel in one piece; others are written as they are.

    Means are read as they come, in whatever step; only when a step is taken, after those before it, is it known what
    its stages were.

    Args:
        choice: of the codec.
        stages: that the device wants.

    """

    def __init__(self, choice: CodecChoice, stages: Stages) -> None:
        self._choice = choice
        self._stages = stages
        self._kept: dict[TensorSpec, Sequence[Stage[Any, Any]]] = {}

    @property
    def policy(self) -> Policy:
        """How the device writes."""
        return self._choice.policy(self._of)

    def undo(self, spec: TensorSpec, values: Float32Array, step: int) -> Float32Array:
        """Return a tensor's mean, flat, as it is without the stages; their memory may be shared."""
        if spec not in self._kept:
            self._kept[spec] = self._of(spec)
        for stage in reversed(self._kept[spec]):
            values = stage.decode(values, Context(spec, spec.shape, step=step))
        return values

    def _of(self, spec: TensorSpec) -> Sequence[Stage[Any, Any]]:
        wanted = self._stages(spec)
        return wanted if wanted and self._choice.takes_stages(spec) else ()
