"""How well a model recognises labelled samples: accuracy, and which labels it takes for which."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from edgenewton.common.extras import needing
from numpy.typing import NDArray

from edge_client.inference.recognizer import Recognizer, ensure_finite

_BATCH = 64


@dataclass(frozen=True)
class Confusion:
    """How often each label was taken for which: counts, int64 `[true labels, answers]`."""

    labels: tuple[str, ...]
    counts: NDArray[np.int64]

    @property
    def samples(self) -> int:
        """How many samples were tried."""
        return int(self.counts.sum())

    @property
    def accuracy(self) -> float:
        """Part of the samples that was recognised."""
        return float(np.trace(self.counts)) / self.samples

    def recall(self, label: str) -> float | None:
        """Return the part of a label's samples that was recognised; None if there were none."""
        row = self.counts[self.labels.index(label)]
        return float(row[self.labels.index(label)] / row.sum()) if row.sum() else None


def confusion_of(labels: Sequence[str], targets: NDArray[np.int64], answers: NDArray[np.int64]) -> Confusion:
    """Count the answers to samples `[n]`, both as positions of labels."""
    counts = np.zeros((len(labels), len(labels)), dtype=np.int64)
    np.add.at(counts, (targets, answers), 1)
    return Confusion(tuple(labels), counts)


def evaluate_files(recognizer: Recognizer, files: dict[str, list[Path]]) -> Confusion:
    """Try a model on files by their label.

    Raises:
        SampleError: a file cannot be used.
        TaskError: the task's own code failed.
        ValueError: the model does not know a label.

    """
    labels = recognizer.info.labels
    unknown = [label for label in files if label not in labels]
    if unknown:
        raise ValueError(f"the model does not know {', '.join(unknown)}; it knows {', '.join(labels)}")
    pairs = [(labels.index(label), path) for label, paths in files.items() for path in paths]
    answers: list[int] = []
    for start in range(0, len(pairs), _BATCH):
        paths = [path for _, path in pairs[start : start + _BATCH]]
        probabilities = recognizer.probabilities(np.stack([recognizer.decode(path) for path in paths]))
        ensure_finite(probabilities, paths)
        answers += probabilities.argmax(axis=1).tolist()
    return confusion_of(labels, np.array([target for target, _ in pairs]), np.array(answers))


def save_confusion(confusion: Confusion, path: Path, title: str) -> None:
    """Draw a confusion matrix: rows are true labels, columns answers, colours the part of the row.

    Raises:
        OSError: the picture cannot be written.

    """
    with needing("a picture of the confusion", "tasks"):
        import matplotlib as mpl

        mpl.use("Agg")
        from matplotlib import pyplot as plt

    count = len(confusion.labels)
    side = min(2.0 + 0.55 * count, 16.0)
    parts = confusion.counts / np.maximum(confusion.counts.sum(axis=1, keepdims=True), 1)
    figure, axes = plt.subplots(figsize=(side + 0.8, side), layout="constrained")
    image = axes.imshow(parts, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(count), confusion.labels, rotation=45, ha="right")
    axes.set_yticks(range(count), confusion.labels)
    axes.set_xlabel("recognised as")
    axes.set_ylabel("true label")
    axes.set_title(f"{title}: {confusion.accuracy:.1%} of {confusion.samples}")
    if count <= 24:
        for row in range(count):
            for column in range(count):
                if confusion.counts[row, column]:
                    colour = "white" if parts[row, column] > 0.5 else "black"
                    text = str(confusion.counts[row, column])
                    axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=9)
    figure.colorbar(image, label="part of the true label's samples", shrink=0.8)
    figure.savefig(path, dpi=120)
    plt.close(figure)
