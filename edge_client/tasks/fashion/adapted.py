"""Fine-tuning: a transformer that was trained on five articles of clothing learns the other five through adapters."""

from pathlib import Path

import torch
from torch import Tensor, nn

from edge_client.tasks.datasets import Dataset
from edge_client.tasks.fashion.base import KNOWN, base_path, base_weights, make_base
from edge_client.tasks.fashion.images import LABELS
from edge_client.tasks.fashion.tasks import FashionTask
from edge_client.tasks.fashion.vision_transformer import VisionTransformer
from edge_client.tasks.lora import add_adapters
from edge_client.tasks.task import TaskError

RANK = 8
_NEW = tuple(label for label in LABELS if label not in KNOWN)


class FashionLoraTask(FashionTask):
    """As `fashion`, for the five articles that its base was not trained on."""

    name = "fashion-lora"
    labels = _NEW

    def model(self) -> nn.Module:
        """Return the base, frozen, with adapters of rank 8 and a layer of outputs (29,000 parameters are trained).

        Without the base's weights it has fresh ones: whoever recognises puts the trained model's in their place.
        """
        model = VisionTransformer(len(KNOWN))
        weights = base_weights()
        if weights is not None:
            model.load_state_dict(weights)
        model.output = nn.Linear(model.output.in_features, len(self.labels))
        add_adapters(model, RANK, without=["output"])
        model.output.requires_grad_(True)
        return model

    @property
    def is_fetched(self) -> bool:
        """Whether the images and the base are on this device."""
        return super().is_fetched and base_path().exists()

    def fetch(self, place: Path | None = None, deadline_s: float = 600.0, *, again: bool = False) -> None:
        """Get the images, and train the base on them."""
        super().fetch(place, deadline_s, again=again)
        tensors = self.tensors()
        if again:
            base_path().unlink(missing_ok=True)
        is_trained_on = ~tensors["is_held_out"]
        make_base(self.preprocess(tensors["images"][is_trained_on]), tensors["targets"][is_trained_on])

    def dataset_of(self, tensors: dict[str, Tensor]) -> Dataset:
        """Return the images of the five articles."""
        if base_weights() is None:
            raise TaskError(
                f"the base of task {self.name!r} is not on this device: run `edge-client fetch {self.name}`, which "
                "trains it in about 20 s"
            )
        places = torch.tensor([LABELS.index(label) for label in self.labels])
        chosen = torch.isin(tensors["targets"], places)
        targets = torch.searchsorted(places, tensors["targets"][chosen])
        return Dataset(
            tensors["images"][chosen], targets, tuple(self.labels), is_held_out=tensors["is_held_out"][chosen]
        )
