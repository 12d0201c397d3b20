"""Motions of a device: six of them, heard by an accelerometer and a gyroscope, generated from their physics."""

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edge_client.tasks.datasets import Dataset, DatasetTask
from edge_client.tasks.decoders.motion import COLUMNS, MotionDecoder
from edge_client.tasks.motion_physics import GRAVITY, LENGTH, MOTIONS

SENSORS = 8
"""Sensors with errors of their own; the partition `natural` gives each device other ones."""
WINDOWS = 40
"""Windows of each motion from each sensor."""
_SEED = 0
_TURNING_SCALE = 5.0
"""Angular velocities are divided by it, rad/s."""


class MotionTask(DatasetTask):
    """Recognises one of six motions in a window of 128 measurements, 50 per second."""

    name = "motion"
    labels: Sequence[str] = tuple(MOTIONS)
    input_shape = (len(COLUMNS), 1, LENGTH)
    raw_shape = (LENGTH, len(COLUMNS))
    _decoder = MotionDecoder()

    def model(self) -> nn.Module:
        """Return a small convolutional network over time."""
        return nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(len(COLUMNS), 16, (1, 9), stride=(1, 2), padding=(0, 4)),
                relu1=nn.ReLU(),
                conv2=nn.Conv2d(16, 32, (1, 5), stride=(1, 2), padding=(0, 2)),
                relu2=nn.ReLU(),
                pool=nn.MaxPool2d((1, 4)),
                flatten=nn.Flatten(),
                hidden=nn.Linear(256, 64),
                relu3=nn.ReLU(),
                output=nn.Linear(64, len(MOTIONS)),
            )
        )

    def decode(self, sample: object) -> Tensor:
        """Return a window as float32 `[128, 6]`: see `MotionDecoder.decode`."""
        return torch.from_numpy(self._decoder.decode(sample))

    def preprocess(self, raw: Tensor) -> Tensor:
        """Return windows `[n, 128, 6]` as inputs, float32 `[n, 6, 1, 128]`."""
        force, turning = raw[..., :3] / GRAVITY, raw[..., 3:] / _TURNING_SCALE
        # An impact is a hundred times gravity; what matters is that it is one.
        return torch.cat([force.clamp(-8, 8), turning.clamp(-8, 8)], dim=-1).transpose(1, 2).unsqueeze(2)

    def dataset(self) -> Dataset:
        """Return windows of all motions from all sensors, the same on every device."""
        rng = np.random.default_rng(_SEED)
        windows, targets, groups = [], [], []
        for sensor in range(SENSORS):
            gain, bias = rng.normal(1, 0.02, 6), rng.normal(0, [0.15] * 3 + [0.03] * 3)
            noise = rng.uniform(0.5, 1.5) * np.array([0.08] * 3 + [0.02] * 3)
            for target, motion in enumerate(MOTIONS.values()):
                for _ in range(WINDOWS):
                    orientation = _rotation(rng)
                    ideal = np.concatenate([part @ orientation.T for part in motion(rng)], axis=1)
                    windows.append(ideal * gain + bias + rng.normal(0, noise, ideal.shape))
                    targets.append(target)
                    groups.append(sensor)
        raw = torch.from_numpy(np.stack(windows).astype(np.float32))
        return Dataset(raw, torch.tensor(targets), tuple(MOTIONS), torch.tensor(groups))

    def true_label(self, sample: object) -> str | None:
        """Return the label in the first line of a file, as those of `save_sample` have it."""
        return self._decoder.true_label(sample)

    def save_sample(self, index: int, path: Path) -> str:
        """Write held-out window number `index` as CSV that carries its label; return the label.

        Raises:
            IndexError: there is no such held-out window.

        """
        place = self.held_out_sample(index, "window")
        label = self.labels[int(self.loaded.targets[place])]
        rows = "\n".join(",".join(f"{number:.9g}" for number in row) for row in self.loaded.raw[place].tolist())
        path.write_text(f"# {label}\n{','.join(COLUMNS)}\n{rows}\n")
        return label


def _rotation(rng: np.random.Generator) -> NDArray[np.float64]:
    """Return a rotation, uniform over all of them `[3, 3]` (QR of a Gaussian matrix; Mezzadri 2007)."""
    q, r = np.linalg.qr(rng.normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    if np.linalg.det(q) < 0:
        q[:, 0] = -q[:, 0]
    return q
