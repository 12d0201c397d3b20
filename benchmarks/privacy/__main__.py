"""What each mode of a session gives away of a device's samples, measured by attacks, and what masks cost.

Sessions are real ones, over gRPC with a real coordinator; the attackers get what it received, the weights, and the
number of samples. Costs are those of masked sessions beside int8 sessions that take turns with them.
"""

import json
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmarks.exchange.peers import SPAWN
from benchmarks.privacy import costs
from benchmarks.privacy.attacks import BATCHES, Case, Finding, attack
from benchmarks.privacy.choices import SEEDS, Choice, choice
from benchmarks.privacy.dropouts import SIZES, key_seconds, survival
from benchmarks.privacy.fleet import DEVICES, NETWORKS, be_quiet
from benchmarks.privacy.membership import Membership, infer, shadows
from benchmarks.privacy.modes import BY_NAME, MODES
from benchmarks.privacy.report import QUOTED_NETWORK, choice_table, cost_table, headline, leak_tables, membership_table
from benchmarks.shared.results import FOLDER, save_results

STEPS = {"digits": 30, "1m": 12}
PAIRS = {"digits": 5, "1m": 3}

console = Console(highlight=False)


def main(
    modes: Annotated[list[str] | None, typer.Option(help="Modes to attack; all unless given.")] = None,
    batches: Annotated[list[int] | None, typer.Option(help="Batches to attack; all unless given.")] = None,
    jobs: Annotated[int, typer.Option(help="Sessions to attack at once; each takes one core.", min=1)] = 2,
    devices: Annotated[int, typer.Option(help="Devices to attack, of eight.", min=1, max=DEVICES)] = 2,
    part: Annotated[
        list[str] | None, typer.Option(help="Of costs, choices, attacks, membership; all unless given.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Small batches, one device, short sessions; writes no results.")
    ] = False,
    stored: Annotated[bool, typer.Option("--stored", help="Measure nothing; write results of what was kept.")] = False,
) -> None:
    """Attack every mode and measure what masks cost; write JSON and a table to benchmarks/results."""
    for name, known in [*((m, BY_NAME) for m in modes or ()), *((p, _PARTS) for p in part or ())]:
        if name not in known:
            console.print(f"[bold red]error[/]: {name!r} is unknown; known are {', '.join(known)}")
            raise typer.Exit(2)
    chosen = modes or [mode.name for mode in MODES]
    sizes = batches or ([1, 8] if quick else list(BATCHES))
    found: dict[str, Any] = {}
    is_whole = not (quick or modes or batches)
    for name in () if stored else part or _PARTS:
        began = time.perf_counter()
        if name == "costs":
            found[name] = _costs(quick=quick)
        elif name == "attacks":
            found[name] = [asdict(finding) for finding in _attacks(chosen, sizes, jobs, 1 if quick else devices)]
        elif name == "choices":
            found[name] = _choices(chosen, jobs, quick=quick)
        else:
            found[name] = _membership(chosen, jobs, steps=20 if quick else 60)
        if is_whole:
            _RUNS.mkdir(parents=True, exist_ok=True)
            seconds = round(time.perf_counter() - began)
            (_RUNS / f"{name}.json").write_text(json.dumps({"found": found[name], "seconds": seconds}))
    if not stored:
        _report(found)
    missing = [name for name in _PARTS if not (_RUNS / f"{name}.json").exists()]
    if is_whole and not missing:
        kept = {name: json.loads((_RUNS / f"{name}.json").read_text()) for name in _PARTS}
        text, figures = _report({name: each["found"] for name, each in kept.items()}, is_shown=False)
        data = {"devices": DEVICES, "attacked_devices": devices, **kept}
        path = save_results("privacy", figures, data, "cryptography", "scipy")
        (FOLDER / "privacy.md").write_text(f"# Privacy\n\n{text}")
        console.print(f"written: {path}, and the tables beside it")
    elif is_whole:
        console.print(f"kept in {_RUNS}; results are written once there are these too: {', '.join(missing)}")


_RUNS = Path("runs/privacy")
"""Parts that were measured whole: results are written from all of them."""


def _report(found: Mapping[str, Any], *, is_shown: bool = True) -> tuple[str, dict[str, float | None]]:
    """Return the tables and the headline of what was found."""
    findings = [Finding(**finding) for finding in found.get("attacks", ())]
    members = {mode: Membership(**each) for mode, each in found.get("membership", {}).items()}
    of_costs = found.get("costs", {})
    ratios = {network: costs.Ratio(**ratio) for network, ratio in of_costs.get("ratios", {}).items()}
    choices = {mode: Choice(**each) for mode, each in found.get("choices", {}).items()}
    text = "\n".join(
        [
            f"## {QUOTED_NETWORK} after {STEPS['digits']} steps\n\n{choice_table(choices)}\n",
            leak_tables(findings),
            f"## Membership in the final model, {QUOTED_NETWORK}\n\n{membership_table(members)}\n",
            f"## Masked over int8, {DEVICES} devices\n\n{cost_table(ratios)}\n",
        ]
    )
    figures = headline(findings, ratios, of_costs) | {"dp_accuracy_gain_median": _accuracy_gain()}
    if is_shown:
        console.print(text, markup=False, soft_wrap=True)
        console.print_json(json.dumps(figures))
    return text, figures


def _accuracy_gain() -> float | None:
    """Return what `python -m benchmarks.privacy.dp` has written, if it has."""
    path = FOLDER / "privacy-dp.json"
    gain: float | None = json.loads(path.read_text())["headline"]["dp_accuracy_gain_median"] if path.exists() else None
    return gain


_PARTS = ("costs", "choices", "attacks", "membership")


def _attacks(modes: Sequence[str], batches: Sequence[int], jobs: int, devices: int) -> list[Finding]:
    cases = [Case(network, mode, batch) for batch in batches for mode in modes for network in NETWORKS]
    findings: list[Finding] = []
    with ProcessPoolExecutor(jobs, SPAWN, be_quiet) as pool:
        asked = [pool.submit(attack, case, devices) for case in cases]
        for number, done in enumerate(as_completed(asked), start=1):
            findings += done.result()
            if number % 8 == 0 or number == len(asked):
                console.print(f"[cyan]{number} of {len(asked)} sessions attacked[/]")
    return findings


def _choices(modes: Sequence[str], jobs: int, *, quick: bool) -> dict[str, Any]:
    with ProcessPoolExecutor(jobs, SPAWN, be_quiet) as pool:
        seeds = SEEDS[:1] if quick else SEEDS
        asked = {mode: pool.submit(choice, BY_NAME[mode], QUOTED_NETWORK, seeds=seeds) for mode in modes}
        return {mode: asdict(done.result()) for mode, done in asked.items()}


def _membership(modes: Sequence[str], jobs: int, steps: int) -> dict[str, Any]:
    with ProcessPoolExecutor(jobs, SPAWN, be_quiet) as pool:
        known = pool.submit(shadows, QUOTED_NETWORK, steps=steps).result()
        asked = {mode: pool.submit(infer, BY_NAME[mode], QUOTED_NETWORK, known, steps) for mode in modes}
        return {mode: asdict(done.result()) for mode, done in asked.items()}


def _costs(*, quick: bool) -> dict[str, Any]:
    """Measure what takes time or bytes, and how many drop-outs are survived."""
    ratios = {}
    for network, steps in STEPS.items():
        console.print(f"[cyan]sessions of {steps} steps, {network}[/]")
        pairs = costs.measure(network, 1 if quick else PAIRS[network], steps // 2 if quick else steps)
        ratios[network] = asdict(costs.ratios(pairs))
    sizes = SIZES[:4] if quick else SIZES
    survived = asdict(survival(sizes)) | {"devices": sizes}
    return {"ratios": ratios, "dropouts": survived, "keys_of_100_devices": asdict(key_seconds())}


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(main)
    app()
