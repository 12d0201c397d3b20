"""Trains models that other people wrote, counts what holds of how many, and writes the table of `docs/models.md`."""

import json
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.shared.results import markdown_table, save_results
from benchmarks.zoo.case import Case
from benchmarks.zoo.checks import STEPS, adam, loss_after, newton, not_resumed, sgd, train, wrong_gradients
from benchmarks.zoo.larger import LARGER_CASES
from benchmarks.zoo.measures import overhead, share_with_curvature
from benchmarks.zoo.models import CASES
from benchmarks.zoo.two_devices import devices_apart

DOCUMENT = Path(__file__).parents[2] / "docs" / "models.md"
BEGIN, END = "<!-- begin of the table -->", "<!-- end of the table -->"


@dataclass(frozen=True)
class Result:
    """What was measured of a model."""

    model: str
    package: str
    parameters: int
    curvature_share: float
    """The part of the parameters that are of layers with a curvature estimate."""
    overhead: float
    """A step's time over that of SGD."""
    loss_before: float
    loss_sgd: float
    """After 30 steps on one batch; the others likewise."""
    loss_adam: float
    loss_newton: float
    samples: int
    samples_told: int
    wrong_gradients: list[str]
    not_resumed: list[str]
    devices_apart: list[str]

    @property
    def is_ahead_of_sgd(self) -> bool:
        """Whether the loss is smaller than that of SGD."""
        return self.loss_newton < self.loss_sgd

    @property
    def wrong(self) -> list[str]:
        """What should hold and does not."""
        checks = {
            "gradients": not self.wrong_gradients,
            "resuming": not self.not_resumed,
            "behind SGD": self.is_ahead_of_sgd,
            "devices apart": not self.devices_apart,
            f"{self.samples_told} samples for {self.samples}": self.samples_told == self.samples,
        }
        return [name for name, holds in checks.items() if not holds]


def measure(name: str, case: Case, repeats: int) -> Result:
    """Measure a model.

    Args:
        name: of the model.
        case: the model.
        repeats: steps of each kind whose time is taken.

    """
    model = case.model()
    optimizer = newton(model)
    train(case, model, optimizer, 0)
    return Result(
        model=name,
        package=case.package,
        parameters=sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        curvature_share=round(share_with_curvature(optimizer), 4),
        overhead=round(overhead(case, repeats), 2),
        loss_before=loss_after(case, sgd, 0),
        loss_sgd=loss_after(case, sgd),
        loss_adam=loss_after(case, adam),
        loss_newton=loss_after(case, newton),
        samples=case.samples,
        samples_told=optimizer.last_result.samples if optimizer.last_result is not None else 0,
        wrong_gradients=wrong_gradients(case),
        not_resumed=not_resumed(case),
        devices_apart=devices_apart(case),
    )


def headline(results: list[Result]) -> dict[str, int]:
    """Return how many models there are, and of how many each thing holds."""
    return {
        "models": len(results),
        "models_equal_to_autograd": sum(not result.wrong_gradients for result in results),
        "models_resuming_bit_for_bit": sum(not result.not_resumed for result in results),
        "models_ahead_of_sgd": sum(result.is_ahead_of_sgd for result in results),
    }


def table(results: list[Result]) -> str:
    """Return the results as a table in Markdown."""
    header = ["model", "from", "parameters", "with curvature", "step", "loss at first", "SGD", "Adam", "ours", "wrong"]
    rows = []
    for result in results:
        losses = (result.loss_before, result.loss_sgd, result.loss_adam, result.loss_newton)
        rows.append(
            [
                result.model,
                result.package,
                f"{result.parameters:,}",
                f"{result.curvature_share:.0%}",
                f"{result.overhead:.1f}",
                *(f"{loss:.3g}" for loss in losses),
                ", ".join(result.wrong) or None,
            ]
        )
    return markdown_table(header, rows)


def write_document(text: str) -> None:
    """Put a table in the place of the one before it."""
    before, rest = DOCUMENT.read_text().split(BEGIN)
    _, after = rest.split(END)
    DOCUMENT.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")


def main(
    quick: Annotated[bool, typer.Option("--quick", help="The small models only; writes no results.")] = False,
    only: Annotated[str, typer.Option(help="One model; writes no results.")] = "",
) -> None:
    """Measure every model; write JSON to benchmarks/results, and the table to docs/models.md."""
    torch.set_num_threads(1)
    # Which layers take plain steps: the table has their share.
    warnings.simplefilter("ignore", UserWarning)
    cases: dict[str, tuple[Case, int]] = {name: (case, 20) for name, case in CASES.items()}
    if not quick:
        cases |= {name: (case, 3) for name, case in LARGER_CASES.items()}
    if only:
        cases = {only: cases[only]}
    results = []
    for name, (case, repeats) in cases.items():
        began = time.perf_counter()
        results.append(measure(name, case, repeats))
        print(f"{name}: {time.perf_counter() - began:.0f} s", flush=True)
    print(table(results))
    print(json.dumps(headline(results), indent=1))
    if not quick and not only:
        figures: dict[str, Any] = {"steps": STEPS, "results": [asdict(result) for result in results]}
        packages = sorted({case.package for case, _ in cases.values()})
        print(save_results("zoo", headline(results), figures, *packages))
        write_document(table(results))


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(main)
    app()
