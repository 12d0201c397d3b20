"""Plant leaves by their outlines: OSULeaf, 442 leaves of six species, each a series of 427 distances from its centre.

Gandhi 2002, "Content-based image retrieval: plant species identification" (Oregon State University); one of the series
of the UCR archive (Dau et al. 2019, https://arxiv.org/abs/1810.07758).
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from edge_client.tasks.datasets import Dataset
from edge_client.tasks.decoders.leaves import LENGTH, SPECIES, LeavesDecoder
from edge_client.tasks.packages import PackagedData, PackagedTask, PythonPackage
from edge_client.tasks.tables import to_numbers
from edge_client.tasks.task import SampleError

_PARTS = ("TRAIN", "TEST")


def read_outlines(files: Mapping[str, bytes]) -> dict[str, Tensor]:
    """Return the leaves of the package's files (.ts: remarks #, headers @, then rows "number,...,number:class").

    Returns:
        "outlines", float32 `[n, 427]`, "targets", int64 `[n]`, and "is_held_out", bool `[n]`: the archive's test part.

    Raises:
        SampleError: a file is missing or damaged; the text says where.

    """
    outlines, targets, is_held_out = [], [], []
    for part in _PARTS:
        found = [content for path, content in files.items() if path.endswith(f"OSULeaf_{part}.ts")]
        if len(found) != 1:
            raise SampleError(f"there are {len(found)} files OSULeaf_{part}.ts; 1 was expected")
        lines = found[0].decode("utf-8", errors="replace").splitlines()
        rows = [line.rpartition(":") for line in lines if line.strip() and line[0] not in "#@"]
        numbers = to_numbers((row.split(",") for row, _, _ in rows), f"OSULeaf_{part}.ts")
        classes = [label.strip() for _, _, label in rows]
        strange = sorted(set(classes) - {str(number) for number in range(1, len(SPECIES) + 1)})
        if numbers.shape[1] != LENGTH or strange:
            raise SampleError(
                f"OSULeaf_{part}.ts has series of {numbers.shape[1]} and the classes {', '.join(strange)}"
            )
        outlines.append(torch.from_numpy(numbers))
        targets += [int(label) - 1 for label in classes]
        is_held_out += [part == "TEST"] * len(classes)
    return {
        "outlines": torch.cat(outlines),
        "targets": torch.tensor(targets),
        "is_held_out": torch.tensor(is_held_out),
    }


OSU_LEAF = PackagedData(
    name="osu-leaf-1",
    about="OSULeaf, outlines of 442 leaves of six species",
    licence="none stated by the UCR archive; the package is under BSD-3-Clause",
    packages=(PythonPackage("aeon", ("*/datasets/data/OSULeaf/OSULeaf_T*.ts",), others=("sktime",)),),
    download_mb=6,
    kept_mb=0.8,
    read=read_outlines,
)


class LeavesTask(PackagedTask):
    """Recognises one of six species by the outline of a leaf."""

    name = "leaves"
    labels: Sequence[str] = SPECIES
    input_shape = (1, LENGTH)
    raw_shape = (LENGTH,)
    data = OSU_LEAF
    _decoder = LeavesDecoder()

    def model(self) -> nn.Module:
        """Return a small convolutional network along the outline, which closes: it has no beginning and no end."""
        layers: list[tuple[str, nn.Module]] = []
        before = 1
        for number, (channels, kernel, stride) in enumerate(((16, 9, 2), (32, 7, 2), (64, 5, 2), (64, 3, 1)), 1):
            conv = nn.Conv1d(before, channels, kernel, stride, kernel // 2, padding_mode="circular")
            layers.append((f"conv{number}", conv))
            layers.append((f"norm{number}", nn.GroupNorm(4, channels)))
            layers.append((f"relu{number}", nn.ReLU()))
            before = channels
        tail = (
            ("pool", nn.AdaptiveAvgPool1d(1)),
            ("flatten", nn.Flatten()),
            ("output", nn.Linear(before, len(SPECIES))),
        )
        return nn.Sequential(OrderedDict([*layers, *tail]))

    def dataset_of(self, tensors: dict[str, Tensor]) -> Dataset:
        """Return the leaves; those of the archive's test part are held out."""
        return Dataset(tensors["outlines"], tensors["targets"], SPECIES, is_held_out=tensors["is_held_out"])

    def decode(self, sample: object) -> Tensor:
        """Return an outline, float32 `[427]`: see `LeavesDecoder.decode`."""
        return torch.from_numpy(self._decoder.decode(sample))

    def preprocess(self, raw: Tensor) -> Tensor:
        """Return outlines `[n, 427]` as inputs, float32 `[n, 1, 427]`, each of mean 0 and deviation 1."""
        centred = raw - raw.mean(dim=1, keepdim=True)
        return (centred / centred.square().mean(dim=1, keepdim=True).sqrt().clamp(min=1e-6)).unsqueeze(1)

    def true_label(self, sample: object) -> str | None:
        """Return the label in the first line of a file, as those of `save_sample` have it."""
        return self._decoder.true_label(sample)

    def save_sample(self, index: int, path: Path) -> str:
        """Write held-out leaf number `index` as CSV that carries its label; return the label.

        Raises:
            IndexError: there is no such held-out leaf.

        """
        place = self.held_out_sample(index, "leaf")
        label = self.labels[int(self.loaded.targets[place])]
        numbers = "\n".join(f"{number:.9g}" for number in self.loaded.raw[place].tolist())
        path.write_text(f"# {label}\n{numbers}\n")
        return label
