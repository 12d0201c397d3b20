"""Articles of clothing in images: Fashion-MNIST, for networks of several kinds."""

from edge_client.tasks.fashion.adapted import FashionLoraTask
from edge_client.tasks.fashion.tasks import FashionGroupNormTask, FashionTask, FashionVitTask

__all__ = ["FashionGroupNormTask", "FashionLoraTask", "FashionTask", "FashionVitTask"]
