"""Sizes of installations by extra, from a wheel that is built here, and what recognition takes without PyTorch."""

import os
import tempfile
from pathlib import Path
from typing import Annotated

import matplotlib as mpl

mpl.use("Agg")

import torch
import typer
from matplotlib import pyplot as plt

from benchmarks.install.recognition import median_start, start_server
from benchmarks.shared.fresh_environment import build_wheel, install, sizes_mb
from benchmarks.shared.results import markdown_table, save_results
from edge_client.inference import Artefact, Recognizer
from edge_client.inference.onnx_export import save_onnx, to_onnx
from edge_client.tasks.motion import MotionTask

INSTALLATIONS = {
    "core": "",
    "recognition": "recognition",
    "recognition, gRPC, images": "recognition,grpc,images",
    "coordinator": "coordinator",
    "training": "training",
    "daemon": "daemon",
    "daemon, Flower": "daemon,flower",
    "all": "all",
}
"""What is measured, and the extras of each."""
TARGETS = {"recognition_mb": "under 200", "recognition_start_s": "under 1", "recognition_rss_mb": "under 150"}
_NAMED_MB = 50
"""Packages that the plot names are as large as this."""
PLOT = Path(__file__).parents[2] / "docs" / "install.png"


def main(
    quick: Annotated[bool, typer.Option("--quick", help="Recognition alone, one start; nothing is written.")] = False,
    starts: Annotated[int, typer.Option(help="Starts of the server; the median counts.", min=1)] = 9,
) -> None:
    """Measure, print a table, and write benchmarks/results/install.json and docs/install.png."""
    sizes: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wheel = build_wheel(folder / "wheel")
        recognition = install(wheel, "recognition", folder / "recognition")
        model, sample, label = make_model(folder)
        measured = [start_server(recognition, model, sample, label) for _ in range(1 if quick else starts)]
        for title, extras in INSTALLATIONS.items():
            if quick and title != "recognition":
                continue
            programs = recognition if title == "recognition" else install(wheel, extras, folder / title)
            sizes[title] = sizes_mb(programs)
            print(f"{title}: {sum(sizes[title].values()):.0f} MB", flush=True)
    if lacking := {"torch", "flwr"} & sizes["recognition"].keys():
        raise RuntimeError(f"recognition brings {', '.join(lacking)}")
    typical = median_start(measured)
    totals = {title: round(sum(packages.values()), 1) for title, packages in sizes.items()}
    headline = {
        "recognition_mb": totals["recognition"],
        "recognition_start_s": round(typical.seconds, 2),
        "recognition_rss_mb": round(typical.rss_mb, 1),
        "core_mb": totals.get("core"),
    }
    table = markdown_table(
        ["installation", "pip install", "MB", "packages", "largest"],
        [
            [title, _command(title), round(totals[title]), len(packages), _largest(packages)]
            for title, packages in sizes.items()
        ],
    )
    print(table)
    print(markdown_table(["figure", "measured", "target"], [[k, v, TARGETS.get(k)] for k, v in headline.items()]))
    if not quick:
        figures = {
            "table": table,
            "recognition_start_cpu_s": round(typical.cpu_s, 2),
            "targets": TARGETS,
            "load_average": round(os.getloadavg()[0], 1),
            "starts": [start._asdict() for start in measured],
            "mb": {title: {name: round(mb, 2) for name, mb in packages.items()} for title, packages in sizes.items()},
        }
        print(save_results("install", headline, figures, "onnxruntime"))
        plot(sizes)


def make_model(folder: Path) -> tuple[Path, Path, str]:
    """Return an ONNX file of the task `motion`, a sample, and the label that the model gives it."""
    task = MotionTask()
    torch.manual_seed(0)
    model, sample = folder / "motion.onnx", folder / "motion.csv"
    save_onnx(to_onnx(Artefact.of(task, "motion", task.model(), 0), task), model)
    task.save_sample(0, sample)
    return model, sample, Recognizer.load(model).predict([sample])[0].label


def plot(sizes: dict[str, dict[str, float]]) -> None:
    """Draw what each installation takes, its largest packages apart."""
    named = sorted({name for packages in sizes.values() for name, mb in packages.items() if mb >= _NAMED_MB})
    figure, axes = plt.subplots(figsize=(9, 4), dpi=110)
    titles = list(sizes)[::-1]
    left = [0.0] * len(titles)
    for place, name in enumerate([*named, "others"]):
        parts = [sizes[t].get(name, 0.0) if name != "others" else _others(sizes[t], named) for t in titles]
        colour = "0.8" if name == "others" else f"C{place}"
        axes.barh(titles, parts, left=left, label=name, color=colour, height=0.65)
        left = [before + part for before, part in zip(left, parts, strict=True)]
    for place, total in enumerate(left):
        axes.text(total + 8, place, f"{total:.0f}", va="center", fontsize=9)
    axes.set(xlabel="MB on disk, compiled files included")
    axes.margins(x=0.08)
    axes.legend(fontsize=8, frameon=False, loc="upper right")
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(PLOT)
    plt.close(figure)


def _others(packages: dict[str, float], named: list[str]) -> float:
    return sum(mb for name, mb in packages.items() if name not in named)


def _command(title: str) -> str:
    extras = INSTALLATIONS[title]
    return f"`edgenewton[{extras}]`" if extras else "`edgenewton`"


def _largest(packages: dict[str, float]) -> str:
    largest = sorted(packages.items(), key=lambda item: -item[1])[:3]
    return ", ".join(f"{name} {mb:.0f}" for name, mb in largest)


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(main)
    app()
