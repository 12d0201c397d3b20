"""The tasks of the long benchmark, by their names; anything that `load_task` knows can be given besides."""

from collections.abc import Mapping
from dataclasses import dataclass

from edge_client.tasks import PartitionKind, Task, load_task

BATCHES = 1000


@dataclass(frozen=True)
class LongTask:
    """A task, and how its data are spread."""

    name: str
    partition: PartitionKind = "dirichlet"
    batches: int = BATCHES
    """Of each device, in a run of full length."""
    is_for_defaults: bool = False
    """Whether the defaults may be chosen on it; the others only report."""

    path: str = ""
    """Where its class is, if it is none of the product's."""
    is_large: bool = False
    """Whether it is for a GPU."""

    def load(self) -> Task:
        """Return the task itself.

        Raises:
            TaskError: it cannot be had here; the text says why.

        """
        return load_task(self.path or self.name)


LONG_TASKS: Mapping[str, LongTask] = {
    task.name: task
    for task in (
        LongTask("fashion", is_for_defaults=True),
        LongTask("text", is_for_defaults=True),
        LongTask("fashion-groupnorm"),
        LongTask("fashion-vit"),
        LongTask("leaves"),
        LongTask("languages"),
        LongTask("fashion-lora"),
        LongTask("fashion-resnet18", path="benchmarks.long.large:FashionResNet18Task", is_large=True),
        LongTask("text-large", path="benchmarks.long.large:LargeTextTask", is_large=True),
    )
}


def tasks_for(device: str) -> list[str]:
    """Return the names of the tasks that are meant for a device: the large ones for a GPU."""
    return [name for name, task in LONG_TASKS.items() if task.is_large == (device != "cpu")]


def long_task(name: str) -> LongTask:
    """Return a task of the benchmark, or any other with the usual partition and length."""
    return LONG_TASKS.get(name) or LongTask(name)
