"""What the trials say: means over seeds, tables, and the headline."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from statistics import mean
from typing import Any

from benchmarks.attacks.attacks import ATTACKS, NONE
from benchmarks.attacks.trials import ABSENT, BAD, FLOWER, RECOMMENDED, RULES, Trial
from benchmarks.shared.results import markdown_table

Group = tuple[str, str, str, str, int]
"""Task, spread, method, attack, bad devices."""


def means(trials: Iterable[Trial]) -> dict[Group, float]:
    """Return the accuracies in percent, means over the seeds."""
    groups: dict[Group, list[float]] = defaultdict(list)
    for t in trials:
        groups[t.task, t.spread, t.method, t.attack, t.bad].append(100 * t.accuracy)
    return {group: mean(values) for group, values in groups.items()}


def losses(found: Mapping[Group, float], method: str, spread: str) -> dict[tuple[str, str, int], float]:
    """Return what a method loses, in points, by task, attack and bad devices, "none" among them.

    Our rules are compared with the plain mean of devices of which all are honest, and Flower's strategies with FedAvg.
    """
    against = "FedAvg" if method in FLOWER else "mean"
    return {
        (task, attack, bad): found[task, spread, against, NONE.name, 0] - value
        for (task, of_spread, of_method, attack, bad), value in found.items()
        if of_method == method and of_spread == spread and (task, spread, against, NONE.name, 0) in found
    }


def worst(found: Mapping[Group, float], method: str, spread: str) -> dict[str, Any]:
    """Return a method's largest loss under an attack, which that is, and its largest loss without one."""
    of_method = losses(found, method, spread)
    attacked = {case: loss for case, loss in of_method.items() if case[1] not in (NONE.name, ABSENT)}
    without = [loss for case, loss in of_method.items() if case[1] == NONE.name]
    if not attacked or not without:
        return {}
    case = max(attacked, key=lambda c: attacked[c])
    return {
        "loss_under_attack_worst": round(attacked[case], 2),
        "worst_case": dict(zip(("task", "attack", "bad"), case, strict=True)),
        "loss_without_attack": round(max(without), 2),
    }


def headline(found: Mapping[Group, float]) -> dict[str, Any]:
    """Return the figures that the project quotes, in points of 100."""
    of_alike = worst(found, RECOMMENDED, "alike")
    of_skewed = worst(found, RECOMMENDED, "skewed")
    return {
        "accuracy_loss_under_attack_worst": of_alike.get("loss_under_attack_worst"),
        "accuracy_loss_without_attack": of_alike.get("loss_without_attack"),
        "attacks": len(ATTACKS),
        "recommended": RECOMMENDED,
        "accuracy_loss_under_attack_worst_skewed": of_skewed.get("loss_under_attack_worst"),
        "accuracy_loss_without_attack_skewed": of_skewed.get("loss_without_attack"),
    }


def summary(found: Mapping[Group, float]) -> dict[str, Any]:
    """Return each method's worst, by spread."""
    spreads = sorted({group[1] for group in found})
    return {
        spread: {method: of for method in (*RULES, *FLOWER) if (of := worst(found, method, spread))}
        for spread in spreads
    }


def tables(found: Mapping[Group, float]) -> str:
    """Return a table for each task and spread: accuracies by method and attack, with one and two bad devices."""
    text = ""
    for task, spread in dict.fromkeys((group[0], group[1]) for group in found):
        methods = [m for m in (*RULES, *FLOWER) if any(g[:3] == (task, spread, m) for g in found)]
        rows: list[list[Any]] = []
        for attack in (NONE.name, ABSENT, *(a.name for a in ATTACKS)):
            cells = [_cell(found, task, spread, method, attack) for method in methods]
            if any(cell is not None for cell in cells):
                rows.append([attack, *cells])
        text += f"## {task}, data {spread}\n\n{markdown_table(['attack', *methods], rows)}\n\n"
    return text


def _cell(found: Mapping[Group, float], task: str, spread: str, method: str, attack: str) -> str | None:
    counts = (0,) if attack == NONE.name else BAD
    values = [found.get((task, spread, method, attack, bad)) for bad in counts]
    if all(value is None for value in values):
        return None
    return ", ".join("-" if value is None else f"{value:.1f}" for value in values)
