"""How far devices drift apart in local scope, against the steps between two averages and the label skew.

Four devices train digits, each with the curvature of its own samples, through a coordinator. Just before their
parameters are averaged for the last time, the largest distance of a device's parameters from the mean of all is
measured, as a part of the mean's norm; and at the end the accuracy of the averaged model.
"""

import statistics
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Annotated

import torch
import typer
from torch import Tensor

from benchmarks.shared.results import markdown_table, save_results
from coordinator.serving.server import EmbeddedCoordinator, embedded_coordinator
from coordinator.session.settings import SessionSettings
from edge_client.exchange.remote import GradientExchange
from edge_client.tasks import Partition
from edge_client.training.evaluation import evaluate
from edge_client.training.settings import TrainSettings
from edge_client.training.trainer import Trainer

DEVICES = 4


@dataclass(frozen=True)
class Drift:
    """One setting; medians over the seeds."""

    skew: str
    sync_every: int
    """Steps between two averages; 0 stands for shared scope."""
    drift: float
    """Largest distance of a device from the mean, as a part of the mean's norm."""
    accuracy: float


def train(coordinator: EmbeddedCoordinator, settings: TrainSettings) -> tuple[float, float]:
    """Return drift and accuracy of one training."""
    name = f"{settings.partition}-{settings.alpha}-{settings.sync_every}-{settings.seed}"
    coordinator.create_session(name, SessionSettings(devices=DEVICES))
    trainers = [_join(coordinator.address, name, settings, index) for index in range(DEVICES)]
    before: list[Tensor] = [torch.empty(0)] * DEVICES

    def run(index: int) -> None:
        trainer = trainers[index]
        for _ in range(settings.steps):
            trainer.train_batch()
        before[index] = torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])
        trainer.optimizer.synchronise()
        trainer.exchange.close()

    with ThreadPoolExecutor(DEVICES) as pool:
        list(pool.map(run, range(DEVICES)))
    mean = torch.stack(before).mean(dim=0)
    distance = max(float((device - mean).norm()) for device in before)
    trained = trainers[0]
    result = evaluate(trained.model, trained.task, trained.task.test_data(Partition()))
    return distance / float(mean.norm()), result.accuracy


def _join(address: str, session: str, settings: TrainSettings, index: int) -> Trainer:
    exchange = GradientExchange.connect(address, session=session, device=f"device-{index}")
    return Trainer(settings, index, DEVICES, exchange)


def main(
    steps: Annotated[int, typer.Option(help="Batches of each device.", min=2)] = 60,
    seeds: Annotated[int, typer.Option(help="Seeds of weights, partition and batches.", min=1)] = 3,
    quick: Annotated[bool, typer.Option("--quick", help="One seed, few settings; writes no results.")] = False,
) -> None:
    """Measure the drift; write JSON and a table to benchmarks/results."""
    intervals = [0, 1, 10] if quick else [0, 1, 2, 5, 10, 20, 60]
    skews: list[tuple[str, dict[str, object]]] = [("Dirichlet 0.3", {"alpha": 0.3})]
    if not quick:
        skews = [("none", {"partition": "iid"}), ("Dirichlet 1", {"alpha": 1.0}), *skews]
        skews += [("Dirichlet 0.1", {"alpha": 0.1})]
    found: list[Drift] = []
    with embedded_coordinator() as coordinator:
        for skew, partition in skews:
            for every in intervals:
                scope = {"curvature_scope": "local", "sync_every": every} if every else {}
                runs = [
                    train(
                        coordinator,
                        TrainSettings.model_validate(
                            {"steps": steps, "seed": s, "cadence": "every-batch"} | scope | partition
                        ),
                    )
                    for s in range(1 if quick else seeds)
                ]
                drift, accuracy = (statistics.median(values) for values in zip(*runs, strict=True))
                found.append(Drift(skew, every, drift, accuracy))
                print(f"{skew}, averaged every {every or '-'}: drift {drift:.2%}, accuracy {accuracy:.1%}", flush=True)
    header = ["label skew", *("shared scope" if not every else f"local, every {every}" for every in intervals)]
    rows = []
    for skew, _ in skews:
        of_skew = [d for d in found if d.skew == skew]
        rows.append([skew, *(f"{d.accuracy:.1%}, {d.drift:.1%}" for d in of_skew)])
    table = markdown_table(header, rows)
    print(f"accuracy, drift\n\n{table}")
    if not quick:
        worst = next(d for d in found if d.skew == "Dirichlet 0.3" and d.sync_every == 10)
        headline = {"drift_every_10_dirichlet_0.3": worst.drift, "accuracy_every_10_dirichlet_0.3": worst.accuracy}
        print(save_results("drift", headline, {"steps": steps, "seeds": seeds, "settings": [asdict(d) for d in found]}))


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(main)
    app()
