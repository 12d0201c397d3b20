"""The plot of the links' benchmark: seconds to the target on each kind of link, one picture for each task."""

import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.ticker import StrMethodFormatter

from benchmarks.links.configuration import OURS
from benchmarks.links.report import Result, best_of_methods

mpl.use("Agg")
from matplotlib import pyplot as plt

_OURS = "#0b6e4f"


def plot_links(path: Path, found: Sequence[Result], links: Sequence[str]) -> None:
    """Draw the fastest configuration of every method; lower is better."""
    reached = [result for result in best_of_methods(found) if math.isfinite(result.seconds)]
    tasks = list(dict.fromkeys(result.task for result in reached))
    if not tasks:
        return
    methods = sorted({result.method for result in reached if not result.is_ours})
    colours = mpl.colormaps["tab20"].colors  # type: ignore[attr-defined]
    figure, axes = plt.subplots(1, len(tasks), figsize=(2 + 4 * len(tasks), 5), dpi=110, squeeze=False)
    for place, task in zip(axes[0], tasks, strict=True):
        for method in [*methods, OURS.method]:
            of_method = {r.links: r.seconds for r in reached if (r.task, r.method) == (task, method)}
            shown = [name for name in links if name in of_method]
            is_ours = method == OURS.method
            place.plot(
                [links.index(name) for name in shown],
                [of_method[name] for name in shown],
                color=_OURS if is_ours else colours[methods.index(method) % len(colours)],
                marker="*" if is_ours else "o",
                markersize=14 if is_ours else 5,
                linewidth=2 if is_ours else 0.8,
                zorder=3 if is_ours else 2,
                label=method,
            )
        place.set(title=task, yscale="log")
        place.set_xticks(range(len(links)), links, rotation=30, ha="right")
        place.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        place.grid(which="both", alpha=0.2)
    axes[0][0].set_ylabel("seconds to the target")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.tight_layout()
    figure.savefig(path, bbox_inches="tight")
    plt.close(figure)
