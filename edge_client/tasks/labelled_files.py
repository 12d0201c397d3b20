"""Files in one folder per label."""

from pathlib import Path

from edge_client.tasks.errors import SampleError


def files_by_label(folder: Path) -> dict[str, list[Path]]:
    """Return the files of a folder with one folder per label, `FOLDER/LABEL/...`, both in alphabetical order.

    Raises:
        SampleError: there is no such folder, no label in it, or a label without files.

    """
    if not folder.is_dir():
        raise SampleError(f"{folder} is not a folder")
    found = {
        path.name: sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
        for path in sorted(folder.iterdir())
        if path.is_dir() and not path.name.startswith(".")
    }
    if not found:
        raise SampleError(f"{folder} has no folders; one folder of files per label was expected")
    for label, files in found.items():
        if not files:
            raise SampleError(f"{folder / label} has no files")
    return found
