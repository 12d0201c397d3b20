"""What goes wrong when data are fetched."""

from edge_client.tasks.task import TaskError


class FetchError(TaskError):
    """Data cannot be fetched; the text says why and what to do."""
