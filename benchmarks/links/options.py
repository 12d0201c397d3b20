"""Writes options.json, the baselines' options, from the trials of the frontier benchmark.

python -m benchmarks.links.options [--trials runs/frontier]
"""

from pathlib import Path
from typing import Annotated

import typer

from benchmarks.convergence.learning_tasks import LEARNING_TASKS
from benchmarks.links.candidates import OF_A_METHOD, TABLE, best_somewhere, stored_candidates, write_table

_CORES = 2


def main(
    trials: Annotated[Path, typer.Option(help="Where the frontier benchmark keeps its trials.")] = Path(
        "runs/frontier"
    ),
) -> None:
    """Write what is worth a run on any links; what the table has of methods without trials stays."""
    found = {task: best_somewhere(stored_candidates(task, trials), OF_A_METHOD, _CORES) for task in LEARNING_TASKS}
    write_table({task: of_task for task, of_task in found.items() if of_task})
    print(f"{TABLE}: " + ", ".join(f"{len(of_task)} for {task}" for task, of_task in found.items()))


if __name__ == "__main__":
    typer.run(main)
