import subprocess
import sys

import pytest

from benchmarks.demo.output_folder import FolderError, output_folder


def hold(folder):
    return output_folder(folder, "demo", ["summary.json", "round-*.pt", "samples"])


def test_a_folder_with_other_files_is_refused_and_nothing_in_it_is_lost(tmp_path):
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "thesis.txt").write_text("years of work")
    with pytest.raises(FolderError, match="holds files that are not the demo's; they were not touched"), hold(tmp_path):
        pass
    assert [path.name for path in tmp_path.rglob("*")] == ["samples", "thesis.txt"]


def test_a_second_run_replaces_the_results_of_the_first_and_no_other_file(tmp_path):
    folder = tmp_path / "runs" / "demo"
    with hold(folder):
        for name in ("summary.json", "round-1.pt", "notes.txt"):
            (folder / name).write_text("first")
        (folder / "samples").mkdir()
    with hold(folder):
        assert {path.name for path in folder.iterdir() if not path.name.startswith(".")} == {"notes.txt"}


def test_one_run_at_a_time_even_of_another_process(tmp_path):
    attempt = (
        "import sys, pathlib; from benchmarks.demo.output_folder import output_folder\n"
        "with output_folder(pathlib.Path(sys.argv[1]), 'demo', ['summary.json']): print('held')"
    )
    command = [sys.executable, "-c", attempt, tmp_path]
    with hold(tmp_path):
        (tmp_path / "summary.json").write_text("of the first")
        second = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert f"another demo writes to {tmp_path} at this moment" in second.stderr
        assert (tmp_path / "summary.json").exists()
    after = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert after.stdout == "held\n", after.stderr


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(FolderError, match=f"{place} cannot be written: (Not a directory|File exists)"), hold(place):
            pass
