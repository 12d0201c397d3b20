"""Tasks whose data come from packages, and have to be fetched before training; recognising does not need them."""

from abc import abstractmethod
from pathlib import Path

from torch import Tensor

from edge_client.tasks.datasets import Dataset, DatasetTask
from edge_client.tasks.packages.packaged_data import PackagedData
from edge_client.tasks.task import TaskError


class PackagedTask(DatasetTask):
    """A task whose samples are in packages. A subclass names them, and makes a data set of them."""

    data: PackagedData

    @abstractmethod
    def dataset_of(self, tensors: dict[str, Tensor]) -> Dataset:
        """Return all samples, given what `data.read` made."""

    @property
    def is_fetched(self) -> bool:
        """Whether all that training needs is on this device."""
        return self.data.path.exists()

    def fetch(self, place: Path | None = None, deadline_s: float = 600.0) -> None:
        """Get all that training needs, and keep it; see `PackagedData.fetch`.

        Raises:
            FetchError: it cannot be had.

        """
        self.data.fetch(place, deadline_s)

    def dataset(self) -> Dataset:
        """Return all samples.

        Raises:
            TaskError: they were not fetched.

        """
        tensors = self.data.load()
        if tensors is None:
            raise TaskError(
                f"the data of task {self.name!r} are not on this device: run `edge-client fetch {self.name}` "
                f"({self.data.about}; it downloads {self.data.download_mb:g} MB)"
            )
        return self.dataset_of(tensors)
