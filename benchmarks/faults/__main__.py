"""Nothing lost: processes are killed at every named point, links are cut and delayed, and training goes on.

Each case is one session of real processes on the digits task. It survives if every device reaches the last step; no
step that a device had applied may have another outcome in the end, and all devices must end with the same bits.
"""

import random
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import matplotlib as mpl
import typer
from edgenewton.common.failpoints import COORDINATOR_FAILPOINTS, DEVICE_FAILPOINTS
from rich.console import Console

from benchmarks.faults.fleet import Fault, Fleet, FleetSettings, Outcome

mpl.use("Agg")
from matplotlib import pyplot as plt

from benchmarks.shared.results import FOLDER, markdown_table, save_results

STEP = 7
QUICK = ("none", "device before-apply", "device mid-send", "coordinator after-commit", "coordinator mid-broadcast")
RUNS = Path("runs/faults")

console = Console(highlight=False)


def _cut_all_links(fleet: Fleet) -> None:
    for proxy in fleet.proxies:
        proxy.cut()


def matrix() -> list[Fault]:
    """Return all cases."""
    cases = [Fault("none")]
    cases += [Fault(f"device {name}", device_failpoint=f"{name}@{STEP}") for name in DEVICE_FAILPOINTS]
    cases += [Fault(f"coordinator {name}", coordinator_failpoint=f"{name}@{STEP}") for name in COORDINATOR_FAILPOINTS]
    cases += [
        Fault("device and coordinator at once", "after-send@7", "before-commit@7"),
        Fault("link cut", at_step=STEP, action=lambda fleet: fleet.proxies[1].cut()),
        Fault("all links cut", at_step=STEP, action=_cut_all_links),
        Fault("link cut mid-frame", at_step=STEP, action=_cut_mid_frame),
        Fault("links delayed 20 ms each way", proxy_delay_s=0.02),
        Fault("device ten times slower", slow_steps=(5, 9), settings={"step-deadline-s": 0.25}),
        Fault("device stands still beyond its lease", at_step=STEP, action=lambda fleet: fleet.freeze_device(3.0)),
        Fault("device diverged", diverge_at=STEP),
        Fault("device SIGTERM", at_step=STEP, action=lambda fleet: fleet.terminate_device()),
        Fault("coordinator SIGTERM", at_step=STEP, action=lambda fleet: fleet.terminate_coordinator()),
        Fault("all devices killed", at_step=STEP, action=lambda fleet: fleet.kill_all(with_coordinator=False)),
        Fault(
            "everything killed", at_step=STEP, action=lambda fleet: fleet.kill_all(with_coordinator=True), save_every=1
        ),
    ]
    return cases


def random_fault(number: int, steps: int) -> Fault:
    """Return the fault of a random run; the number is its seed."""
    draw = random.Random(number)
    step = draw.randrange(1, steps - 1)
    device = f"{draw.choice(DEVICE_FAILPOINTS)}@{step}"
    coordinator = f"{draw.choice(COORDINATOR_FAILPOINTS)}@{draw.randrange(1, steps - 1)}"
    cut_at = draw.randrange(1, steps - 1)
    kind = draw.randrange(4)
    return Fault(
        f"random {number}",
        device_failpoint=device if kind in (0, 2, 3) else "",
        coordinator_failpoint=coordinator if kind in (1, 2, 3) else "",
        at_step=cut_at if kind == 3 else -1,
        action=(lambda fleet: fleet.proxies[2].cut()) if kind == 3 else None,
    )


def _cut_mid_frame(fleet: Fleet) -> None:
    fleet.proxies[1].cut_after(3_000)


def run(fault: Fault, settings: FleetSettings) -> Outcome:
    folder = RUNS / fault.name.replace(" ", "-")
    shutil.rmtree(folder, ignore_errors=True)
    outcome = Fleet(folder, settings, fault).run()
    if outcome.survived and outcome.bit_identical:
        shutil.rmtree(folder, ignore_errors=True)
    verdict = "[green]ok[/]" if _is_good(outcome) else f"[red]FAILED[/] {outcome.problem}"
    console.print(f"{outcome.name:38} {outcome.seconds:6.1f} s  {outcome.restarts} restarts  {verdict}")
    return outcome


def _is_good(outcome: Outcome) -> bool:
    return outcome.survived and outcome.bit_identical and not outcome.steps_lost


def main(
    quick: Annotated[bool, typer.Option("--quick", help="A few cases, no random runs.")] = False,
    random_runs: Annotated[int, typer.Option(help="Runs with random faults, in a row.")] = 100,
    only: Annotated[str, typer.Option(help="Only cases whose name contains this.")] = "",
    save: Annotated[bool, typer.Option(help="Write results and plot.")] = True,
) -> None:
    """Inject every fault, then random ones (with and without a quorum), and say what was lost."""
    settings = FleetSettings()
    cases = [fault for fault in matrix() if only in fault.name and (not quick or fault.name in QUICK)]
    outcomes = [run(fault, settings) for fault in cases]
    draws = [] if quick or only else [random_fault(number, settings.steps) for number in range(random_runs)]
    randoms: list[Outcome] = []
    for fault in draws:
        randoms.append(run(fault, replace(settings, quorum=2 + len(randoms) % 2)))
        if not _is_good(randoms[-1]):
            break  # in a row
    reference = next((outcome.accuracy for outcome in outcomes if outcome.name == "none"), float("nan"))
    header = ["fault", "survived", "steps lost", "steps repeated", "bit-identical", "accuracy", "fault-free", "seconds"]
    rows = [
        [
            outcome.name,
            "yes" if outcome.survived else "NO",
            outcome.steps_lost,
            outcome.steps_repeated,
            "yes" if outcome.bit_identical else "NO",
            f"{outcome.accuracy:.3f}",
            f"{reference:.3f}",
            f"{outcome.seconds:.1f}",
        ]
        for outcome in outcomes
    ]
    print(markdown_table(header, rows))
    everything = outcomes + randoms
    headline = {
        "cases": len(outcomes),
        "survived": sum(outcome.survived for outcome in outcomes),
        "committed_steps_lost": sum(outcome.steps_lost for outcome in everything),
        "bit_identical": all(outcome.bit_identical for outcome in everything),
        "random_runs_survived": sum(map(_is_good, randoms)),
    }
    console.print(headline)
    if save and not only:
        figures = {
            "quick": quick,
            "settings": asdict(settings),
            "cases": [asdict(outcome) for outcome in outcomes],
            "random_runs": [asdict(outcome) for outcome in randoms],
        }
        console.print(f"results: {save_results('faults', headline, figures)}")
        _plot(outcomes, reference)
    if not all(map(_is_good, everything)):
        raise typer.Exit(1)


def _plot(outcomes: list[Outcome], reference: float) -> None:
    figure, axes = plt.subplots(figsize=(8, 0.3 * len(outcomes) + 1.2), dpi=110)
    names = [outcome.name for outcome in outcomes][::-1]
    axes.barh(names, [outcome.accuracy for outcome in outcomes][::-1], color="#4a6fa5")
    axes.axvline(reference, color="#b5651d", linewidth=1.2, label="without faults")
    axes.set(xlabel="accuracy at the end", xlim=(0, 1))
    axes.legend(frameon=False, loc="lower left")
    figure.tight_layout()
    figure.savefig(FOLDER / "faults.png")
    plt.close(figure)


if __name__ == "__main__":
    typer.run(main)
