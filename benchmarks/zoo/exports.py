"""Exports the zoo's models to ONNX and ExecuTorch, compares them with torch, and writes a table of `docs/models.md`."""

import json
import warnings
from typing import Annotated, Any

import torch
import typer

from benchmarks.shared.results import FOLDER, markdown_table, save_results, version_of
from benchmarks.zoo.__main__ import DOCUMENT
from benchmarks.zoo.exported import ATOL, RTOL, largest_difference
from benchmarks.zoo.models import CASES
from edge_client.inference import ArtefactError
from edge_client.inference.engine_name import EngineName

BEGIN, END = "<!-- begin of the exports -->", "<!-- end of the exports -->"
ENGINES: tuple[EngineName, ...] = ("onnx", "executorch")
RESULTS = FOLDER / "exports.json"

Found = dict[str, float | str]
"""Of each model, the largest difference of a probability, or why it cannot be exported."""


def export_all(engine: EngineName, names: list[str]) -> Found:
    """Export models with one engine's exporter, and compare them with torch."""
    found: Found = {}
    for name in names:
        try:
            found[name] = largest_difference(name, CASES[name], engine)
        except (ArtefactError, AssertionError) as error:
            found[name] = " ".join(str(error).split())
        print(f"{engine}, {name}: {found[name]}", flush=True)
    return found


def headline(results: dict[str, Found]) -> dict[str, int]:
    """Return how many models there are, and how many agree with torch once they are exported."""
    agreeing = {
        f"models_in_{engine}": sum(isinstance(one, float) for one in found.values())
        for engine, found in results.items()
    }
    return {"models": len(CASES), **agreeing}


def table(results: dict[str, Found]) -> str:
    """Return the results as a table in Markdown, with the reasons below it."""
    rows, reasons = [], []
    for name in CASES:
        cells: list[Any] = [name]
        for engine in ENGINES:
            one = results.get(engine, {}).get(name)
            cells.append(f"{one:.0e}" if isinstance(one, float) else "no" if one is not None else None)
            if isinstance(one, str):
                reasons.append(f"- {name}: {one}")
        rows.append(cells)
    return "\n\n".join([markdown_table(["model", *ENGINES], rows), "\n".join(reasons)]).strip()


def write_document(text: str) -> None:
    """Put a table in the place of the one before it."""
    before, rest = DOCUMENT.read_text().split(BEGIN)
    _, after = rest.split(END)
    DOCUMENT.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")


def main(
    engine: Annotated[str, typer.Option(help="onnx or executorch alone; the other's results stay.")] = "",
    only: Annotated[str, typer.Option(help="One model; writes no results.")] = "",
) -> None:
    """Export every model; write JSON to benchmarks/results, and the table to docs/models.md."""
    if engine and engine not in ENGINES:
        raise typer.BadParameter(f"{engine!r} is unknown; known are {', '.join(ENGINES)}")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    chosen = [name for name in ENGINES if engine in ("", name)]
    found: dict[str, Found] = {name: export_all(name, [only] if only else list(CASES)) for name in chosen}
    if only:
        return
    results: dict[str, Found] = json.loads(RESULTS.read_text())["results"] if RESULTS.exists() else {}
    results |= found
    print(json.dumps(headline(results), indent=1))
    packages = {package: version_of(package) for package in ("onnxruntime", "executorch", "transformers")}
    figures = {"tolerance": {"rtol": RTOL, "atol": ATOL}, "packages": packages, "results": results}
    print(save_results("exports", headline(results), figures))
    write_document(table(results))


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(main)
    app()
