"""New projects: what `edge-client new` writes, for a task of one's own, with or without a Flower app."""

from edge_client.scaffold.name import ProjectName, ProjectNameError
from edge_client.scaffold.project import write_project

__all__ = ["ProjectName", "ProjectNameError", "write_project"]
