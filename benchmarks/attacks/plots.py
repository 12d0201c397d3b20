"""The worst that attacks do to each method, as a plot."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from benchmarks.attacks.attacks import ATTACKS, NONE
from benchmarks.attacks.report import Group
from benchmarks.attacks.trials import FLOWER, RULES


def plot_attacks(path: Path, found: Mapping[Group, float], spread: str = "alike") -> None:
    """Draw the accuracy of each method under each attack with two bad devices, the worse of the tasks."""
    attacks = [NONE.name, *(attack.name for attack in ATTACKS)]
    methods = [method for method in (*RULES, *FLOWER) if any(group[1:3] == (spread, method) for group in found)]
    values = np.full((len(methods), len(attacks)), np.nan)
    for row, method in enumerate(methods):
        for column, attack in enumerate(attacks):
            bad = 0 if attack == NONE.name else 2
            cells = [v for (_, s, m, a, b), v in found.items() if (s, m, a, b) == (spread, method, attack, bad)]
            values[row, column] = min(cells, default=np.nan)
    figure, axes = plt.subplots(figsize=(11, 0.42 * len(methods) + 2.6))
    axes.imshow(values, vmin=50, vmax=100, cmap="RdYlGn", aspect="auto")
    for row, column in np.argwhere(np.isfinite(values)):
        axes.text(column, row, f"{values[row, column]:.0f}", ha="center", va="center", fontsize=8)
    axes.set_xticks(range(len(attacks)), attacks, rotation=40, ha="right", fontsize=8)
    axes.set_yticks(range(len(methods)), methods, fontsize=8)
    axes.set_title("Accuracy in %, two of eight devices bad, the worse of two tasks", fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
