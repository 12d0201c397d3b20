import pytest
from server_process import serving

from edge_client.inference import Artefact
from edge_client.tasks import load_task


@pytest.fixture(scope="package")
def repository(tmp_path_factory):
    """A model repository: "seven" in two versions, "flat" in a file of its own, and one that is damaged."""
    folder = tmp_path_factory.mktemp("repository")
    task = load_task("digits")
    artefact = Artefact.of(task, "digits", task.model(), 70)
    artefact.save(folder / "seven" / "6" / "model.pt")
    artefact.save(folder / "seven" / "7" / "model.pt")
    artefact.save(folder / "flat.pt")
    (folder / "damaged.pt").write_bytes(b"PK no model")
    return folder


@pytest.fixture(scope="package")
def server(tmp_path_factory, repository):
    with serving("digits", tmp_path_factory.mktemp("server"), options=[f"--repository={repository}"]) as server:
        yield server
