"""What the trials come to: each method's final accuracy, the target of each task, and the costs to it."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.long.curves import NEVER, Cost, cost_to, final_accuracy
from benchmarks.long.methods import DEFAULT, METHODS, Family, Method
from benchmarks.long.trials import Trial
from benchmarks.shared.record_store import options_text

MARGIN = 0.005
"""The target is the best baseline's final accuracy less this."""


@dataclass(frozen=True)
class Setting:
    """A method with options, in trials of one length: one trial for each seed."""

    method: Method
    options: Mapping[str, float]
    batches: int
    trials: Sequence[Trial]

    @property
    def accuracy(self) -> float:
        """The final accuracy: the median over the seeds."""
        return statistics.median(final_accuracy(trial) for trial in self.trials)

    def cost(self, target: float) -> Cost:
        """Return the medians over the seeds of what it took to a target; infinite where most did not come there."""
        costs = [cost_to(trial, target) for trial in self.trials]
        return Cost(*(statistics.median(getattr(cost, name) for cost in costs) for name in vars(NEVER)))


@dataclass(frozen=True)
class Contest:
    """All methods on one task."""

    task: str
    settings: Sequence[Setting]
    """With those of the tuning."""

    @property
    def ours(self) -> Setting | None:
        """The default, as it is."""
        whole = [setting for setting in self.settings if setting.batches == self.length]
        return next((setting for setting in whole if setting.method.name == DEFAULT and not setting.options), None)

    @property
    def baselines(self) -> list[Setting]:
        """What is not ours."""
        return [setting for setting in self.settings if not setting.method.is_ours]

    @property
    def target(self) -> float | None:
        """The final accuracy of the best baseline less half a point; None without a whole trial of one."""
        whole = [setting.accuracy for setting in self.baselines if setting.batches == self.length]
        return max(whole) - MARGIN if whole else None

    @property
    def length(self) -> int:
        """Batches of a whole trial."""
        return max((setting.batches for setting in self.settings), default=0)

    def best_baseline(self, figure: str) -> Setting:
        """Return the baseline that took least to the target, in one figure of `Cost`, with whatever options.

        Those of the tuning count, too: a shorter schedule may come to the target earlier.
        """
        target = self.target
        assert target is not None
        return min(self.baselines, key=lambda setting: getattr(setting.cost(target), figure))

    def ratio(self, figure: str) -> float | None:
        """Return ours over the best baseline's; infinite where ours did not come to the target, None if unknown."""
        if self.ours is None or self.target is None:
            return None
        theirs: float = getattr(self.best_baseline(figure).cost(self.target), figure)
        own: float = getattr(self.ours.cost(self.target), figure)
        return own / theirs if math.isfinite(theirs) else None

    def against(self, family: Family) -> "Contest":
        """Return the contest with the baselines of one family alone, and so with their target."""
        return Contest(self.task, [s for s in self.settings if s.method.is_ours or s.method.family == family])

    def of_methods(self) -> list[Setting]:
        """Return one setting of each method: that of its whole trials or, without any, the best of its tuning."""
        found: dict[str, Setting] = {}
        for setting in sorted(self.settings, key=lambda s: (s.batches, len(s.trials), s.accuracy), reverse=True):
            found.setdefault(setting.method.name, setting)
        return [found[name] for name in METHODS if name in found]


def contest(task: str, trials: Iterable[Trial]) -> Contest:
    """Return what the trials of a task come to."""
    groups: dict[tuple[str, str, int], list[Trial]] = {}
    for trial in sorted(trials, key=lambda trial: trial.seed):
        groups.setdefault((trial.method, options_text(trial.options), trial.batches), []).append(trial)
    return Contest(
        task,
        [Setting(METHODS[method], group[0].options, batches, group) for (method, _, batches), group in groups.items()],
    )


def headline(contests: Sequence[Contest]) -> dict[str, float | int | None]:
    """Return ours over the best baselines', below 1 where ours need less; null for infinite.

    Tasks without a whole trial of ours and of a baseline do not count.
    """
    figures = _ratios(contests, "best_baseline")
    figures |= _ratios([contest.against("first-order") for contest in contests], "best_first_order")
    compared = [ratio for contest in contests if (ratio := contest.ratio("batches")) is not None]
    return {
        **figures,
        "tasks_compared": len(compared),
        "tasks_not_reached_by_ours": sum(math.isinf(ratio) for ratio in compared),
    }


def _ratios(contests: Sequence[Contest], name: str) -> dict[str, float | int | None]:
    batches = [ratio for contest in contests if (ratio := contest.ratio("batches")) is not None]
    steps = [ratio for contest in contests if (ratio := contest.ratio("sgd_steps")) is not None]
    return {
        f"batches_vs_{name}_median": finite(statistics.median(batches) if batches else math.inf),
        f"batches_vs_{name}_worst": finite(max(batches, default=math.inf)),
        f"cpu_vs_{name}_median": finite(statistics.median(steps) if steps else math.inf),
    }


def finite(value: float, digits: int = 3) -> float | None:
    """Return a number as JSON holds it."""
    return round(value, digits) if math.isfinite(value) else None
