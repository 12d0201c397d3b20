"""Sixty-four devices join, leave, die and misbehave for half an hour: memory stays flat, and no honest step is lost."""

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import matplotlib as mpl
import typer
from rich.console import Console

from benchmarks.soak.run import REPLAY_BYTES, Outcome, Plan, Soak, SoakError

mpl.use("Agg")
from matplotlib import pyplot as plt

from benchmarks.shared.results import FOLDER, markdown_table, save_results

MOST_GROWTH = 0.1
QUICK_MINUTES = 2.0
_SHOWN_PROBLEMS = 20

console = Console(highlight=False)


def main(
    minutes: Annotated[float, typer.Option(help="How long it takes.", min=1.0)] = 30.0,
    quick: Annotated[bool, typer.Option("--quick", help="Two minutes.")] = False,
    seed: Annotated[int, typer.Option(help="Decides who does what.")] = 0,
    output: Annotated[Path, typer.Option(help="Folder for logs, traces and the record; it is replaced.")] = Path(
        "runs/soak"
    ),
    save: Annotated[bool, typer.Option(help="Write results and plot.")] = True,
) -> None:
    """Let devices join, leave, die and misbehave; say what memory grew, and which honest steps were lost."""
    plan = Plan(minutes=QUICK_MINUTES if quick else minutes, seed=seed)
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    try:
        outcome = Soak(plan, output.resolve()).run()
    except SoakError as error:
        console.print(f"[red]FAILED[/] {error}")
        raise typer.Exit(1) from None
    account, told = outcome.account, outcome.told
    for problem in account.problems[:_SHOWN_PROBLEMS]:
        console.print(f"lost: {problem}")
    rows = [[deed, sum(answers.values()), _text(answers)] for deed, answers in outcome.deeds.items()]
    print(markdown_table(["deed", "times", "answers"], rows))
    headline = {
        "minutes": plan.minutes,
        "rss_growth_coordinator": round(outcome.growth["coordinator"], 4),
        "rss_growth_server": round(outcome.growth["server"], 4),
        "honest_steps_lost": account.lost,
    }
    figures = {
        "steps_committed": len(told.committed),
        "honest_steps_acknowledged": account.acknowledged,
        "honest_stays": account.stays,
        "honest_stays_killed": account.killed,
        "heals": account.heals,
        "honest_contributions_too_late": told.honest_left_out,
        "worker_kills": outcome.kills,
        "cuts": outcome.cuts,
        "deeds": sum(sum(answers.values()) for answers in outcome.deeds.values()),
        "answers_to_honest_clients": dict(told.answers),
        "slowest_answer_s": round(told.slowest_answer_s, 2),
        "rss_mib_largest": {name: round(max(m for _, m in of), 1) for name, of in outcome.memory.items()},
        "exit_codes": outcome.exit_codes,
    }
    console.print(headline)
    console.print(figures)
    if save:
        more = {
            "plan": asdict(plan),
            "warm_up_s": plan.warm_up_s,
            "replay_bytes": REPLAY_BYTES,
            "deeds_and_answers": outcome.deeds,
            "rss_mib": {name: [[round(at, 1), round(mib, 1)] for at, mib in of] for name, of in outcome.memory.items()},
            "problems": account.problems,
        }
        console.print(f"results: {save_results('soak', headline, figures | more)}")
        _plot(outcome, plan)
    if not _is_good(outcome):
        raise typer.Exit(1)


def _is_good(outcome: Outcome) -> bool:
    answers = outcome.told.answers
    return (
        outcome.account.lost == 0
        and outcome.account.acknowledged > 0
        and max(outcome.growth.values()) <= MOST_GROWTH
        and outcome.told.is_watching
        and set(answers) == {"page 200", "recognition 200"}
        and set(outcome.exit_codes.values()) == {0}
    )


def _text(answers: dict[str, int]) -> str:
    return ", ".join(f"{count} {answer}" for answer, count in answers.items())


def _plot(outcome: Outcome, plan: Plan) -> None:
    figure, axes = plt.subplots(figsize=(8, 3.2), dpi=110)
    colours = {"coordinator": "#4a6fa5", "server": "#b5651d"}
    labels = {"coordinator": "coordinator", "server": "recognition server"}
    for name, samples in outcome.memory.items():
        axes.plot([at / 60 for at, _ in samples], [mib for _, mib in samples], color=colours[name], label=labels[name])
    axes.axvspan(0, plan.warm_up_s / 60, color="#dddddd", label="warm-up")
    axes.set(xlabel="minutes", ylabel="resident memory, MiB", xlim=(0, None), ylim=(0, None))
    axes.legend(frameon=False, loc="lower right")
    figure.tight_layout()
    figure.savefig(FOLDER / "soak.png")
    plt.close(figure)


if __name__ == "__main__":
    typer.run(main)
