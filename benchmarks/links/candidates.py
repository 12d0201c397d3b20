"""Which baselines are worth a real run on some links: an estimate from the trials of the frontier benchmark.

The frontier benchmark searches a baseline's options for the fewest bytes, and keeps all that it tried. What is best for
time depends on the links, so that each cell takes from all trials, those of all baselines together, what would reach
the target first there.
"""

import json
import math
import os
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.convergence.learning_tasks import DEVICES
from benchmarks.frontier.interface import Options
from benchmarks.frontier.trials import Trial, TrialStore
from benchmarks.links.configuration import RECIPES, Configuration
from benchmarks.links.link import LINKS, Links
from benchmarks.shared.record_store import options_text

TABLE = Path(__file__).with_name("options.json")
"""Candidates that are committed, for whoever has no trials."""
OF_A_METHOD = 2
"""So many candidates of one baseline are run on the same links at most: the estimate may be wrong for all of them."""
_EXCHANGE_S = 0.008
"""What an exchange takes on loopback, on two cores."""


@dataclass(frozen=True)
class Candidate:
    """Options of a baseline that reached the target in the frontier benchmark; medians over the seeds that were run."""

    method: str
    options: Options
    batches: float
    bytes: float
    """Of each device, each way."""
    exchanges: float
    device_s: float
    """Processor seconds of a batch on one device."""

    @property
    def configuration(self) -> Configuration:
        """What is run."""
        return Configuration(self.method, self.options)

    def seconds(self, links: Links, cores: int) -> float:
        """Return about how long it takes to the target.

        The devices share the cores; the slowest link is waited for. What goes up and what comes down do not overlap.
        """
        size = 8 * self.bytes / self.exchanges
        exchange = max(link.round_trip_s + 2 * size / link.bit_s for link in links) + _EXCHANGE_S
        return self.batches * self.device_s * len(links) / min(cores, len(links)) + self.exchanges * exchange


def candidates(trials: Iterable[Trial]) -> list[Candidate]:
    """Return what reached the target, of methods that can be run for real: with most seeds, if several were tried."""
    groups: dict[tuple[str, str], list[Trial]] = {}
    for trial in trials:
        if trial.method in RECIPES:
            groups.setdefault((trial.method, options_text(trial.options)), []).append(trial)
    found = []
    for group in groups.values():
        batches = statistics.median(trial.point.batches for trial in group)
        if math.isfinite(batches):
            reached = [trial for trial in group if trial.is_reached]
            found.append(
                Candidate(
                    reached[0].method,
                    reached[0].options,
                    batches,
                    statistics.median(trial.point.bytes for trial in group),
                    statistics.median(trial.exchanges for trial in reached),
                    # A trial simulates the devices one after the other.
                    statistics.median(trial.seconds / trial.batches for trial in reached) / DEVICES,
                )
            )
    return found


def promising(found: Iterable[Candidate], links: Links, count: int, cores: int | None = None) -> list[Candidate]:
    """Return the candidates that should reach the target first, the best first."""
    cores = cores or os.cpu_count() or 1
    chosen: list[Candidate] = []
    for candidate in sorted(found, key=lambda candidate: candidate.seconds(links, cores)):
        of_method = sum(other.method == candidate.method for other in chosen)
        if len(chosen) < count and of_method < OF_A_METHOD:
            chosen.append(candidate)
    return chosen


def stored_candidates(task: str, trials: Path, table: Path = TABLE) -> list[Candidate]:
    """Return a task's candidates: from the trials in a folder, and of methods that have none there from the table."""
    tried = [trial for path in sorted((trials / task).glob("*.jsonl")) for trial in TrialStore(path).all()]
    methods = {trial.method for trial in tried}
    kept = json.loads(table.read_text()).get(task, []) if table.exists() else []
    rest = [Candidate(**entry) for entry in kept if entry["method"] not in methods]
    return candidates(tried) + [candidate for candidate in rest if candidate.method in RECIPES]


def best_somewhere(found: Sequence[Candidate], count: int, cores: int) -> list[Candidate]:
    """Return the candidates that are among the best of their method on some links."""
    kept: list[Candidate] = []
    for method in dict.fromkeys(candidate.method for candidate in found):
        of_method = [candidate for candidate in found if candidate.method == method]
        for links in LINKS.values():
            best = sorted(of_method, key=lambda candidate: candidate.seconds(links, cores))[:count]
            kept += [candidate for candidate in best if candidate not in kept]
    return kept


def write_table(of_tasks: dict[str, Sequence[Candidate]], path: Path = TABLE) -> None:
    """Write candidates by task, one a line."""
    lines = [
        f" {json.dumps(task)}: [\n" + ",\n".join(f"  {json.dumps(asdict(one))}" for one in found) + "\n ]"
        for task, found in of_tasks.items()
    ]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")
