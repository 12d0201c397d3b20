"""What both commands print where there is no terminal: whole lines, whatever its width would be."""

import contextlib
import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import termios
from importlib import metadata
from pathlib import Path

import pytest
from processes import CLIENT, COORDINATOR, Coordinator, train_on_devices

from edge_client.inference import Artefact
from edge_client.tasks import load_task

pytestmark = pytest.mark.processes

NARROW = os.environ | {"COLUMNS": "40", "TERM": "xterm-256color"}
for asked in ("FORCE_COLOR", "TTY_COMPATIBLE"):
    NARROW.pop(asked, None)


@pytest.fixture
def folder(tmp_path):
    """Return a folder with a long path, and with what Rich would take for markup."""
    path = tmp_path / ("long " + "x" * 150) / "[bold]" / ":key:"
    path.mkdir(parents=True)
    return path


def run(*arguments):
    """Return the exit status, and what was printed to standard output and error."""
    done = subprocess.run(
        [str(argument) for argument in arguments], capture_output=True, text=True, env=NARROW, timeout=120, check=False
    )
    assert "\x1b" not in done.stdout + done.stderr  # no colour
    return done.returncode, done.stdout, done.stderr


def test_paths_and_tables_stay_whole(folder):
    model, exported, sample = folder / "model.pt", folder / "other.pt", folder / "7.png"
    task = load_task("digits")
    Artefact.of(task, "digits", task.model(), 3).save(model)
    task.save_sample(0, sample)
    code, printed, _ = run(CLIENT, "export", model, "--output", exported)
    assert code == 0
    assert printed == f"model of task 'digits' after 3 steps saved as {exported}\n"
    code, printed, _ = run(CLIENT, "predict", model, sample)
    assert code == 0
    (row,) = [line for line in printed.splitlines() if str(sample) in line]
    assert "%" in row


def test_errors_stay_whole(folder):
    code, _, printed = run(CLIENT, "predict", folder / "model.pt", "x.png")
    assert code == 1
    assert printed.count("\n") == 1
    assert printed.startswith(f"error: {folder / 'model.pt'} does not exist")
    code, _, printed = run(CLIENT, "train", f"--nonsense-{'x' * 100}")
    assert code == 2
    assert printed.splitlines()[-1] == f"Error: No such option '--nonsense-{'x' * 100}'."
    code, _, printed = run(COORDINATOR, "ca", "list", "--ca", folder)
    assert code == 1
    assert f"error: {folder}" in printed.splitlines()[0]


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        (
            [CLIENT, "train"],
            "File for this device's state; if it is there, training goes on from it after a restart.",
        ),
        ([CLIENT, "train"], "Steps between two savings of the state.  [default: 20; x>=1]"),
        ([COORDINATOR, "ca", "issue"], "With --server: name or address at which devices find it, beside those"),
    ],
)
def test_help_has_a_line_for_each_option(command, sentence):
    code, printed, _ = run(*command, "--help")
    assert code == 0
    assert sentence in printed
    assert "│" not in printed


def on_a_terminal(*arguments, columns=80, code=0):
    """Return what is printed to a terminal of so many columns, without its colours."""
    process, terminal = pty.fork()
    if not process:
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        environment = {name: value for name, value in NARROW.items() if name != "COLUMNS"}
        os.execvpe(str(arguments[0]), [str(argument) for argument in arguments], environment)
    printed = b""
    with contextlib.suppress(OSError):  # the other end is closed
        while chunk := os.read(terminal, 65_536):
            printed += chunk
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == code
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", printed.decode()).replace("\r\n", "\n")


def test_help_on_a_terminal_has_its_width():
    lines = on_a_terminal(CLIENT, "export", "--help").splitlines()
    assert max(map(len, lines)) < 80
    text = " ".join(" ".join(lines).split())
    assert "edgenewton[onnx]" in text
    assert "SOURCE A model (.pt), or a checkpoint that the ServerApp wrote" in text


def test_paths_and_tables_on_a_terminal_stay_whole(folder):
    model, exported, sample = folder / "model.pt", folder / "other.pt", folder / "7.png"
    task = load_task("digits")
    Artefact.of(task, "digits", task.model(), 3).save(model)
    task.save_sample(0, sample)
    assert f"saved as {exported}\n" in on_a_terminal(CLIENT, "export", model, "--output", exported)
    rows = on_a_terminal(CLIENT, "predict", model, sample, sample).splitlines()
    assert rows.count(f"file         {sample}") == 2  # too wide for a table
    found = json.loads(run(CLIENT, "predict", "--json", model, sample)[1])
    assert found[0]["file"] == str(sample)
    assert 0 < found[0]["probability"] <= 1


def test_what_is_misspelt_leads_to_what_was_meant():
    assert run(CLIENT, "trian")[2].splitlines()[-1] == "Error: No such command 'trian'; did you mean 'train'?"
    assert "did you mean 'lr'?" in run(CLIENT, "train", "-c", "learning-rate=1")[2]


@pytest.mark.parametrize("command", [CLIENT, COORDINATOR])
def test_each_command_tells_its_release(command):
    code, printed, _ = run(command, "--version")
    assert (code, printed) == (0, f"{Path(command).name} {metadata.version('edgenewton')}\n")


def test_the_authoritys_list_stays_whole(folder):
    labels = [f"label-{index}-{'y' * 30}" for index in range(8)]
    options = [part for label in labels for part in ("--label", label)]
    assert run(COORDINATOR, "ca", "init", folder / "ca")[0] == 0
    assert run(COORDINATOR, "ca", "issue", "--ca", folder / "ca", *options, "gateway-7")[0] == 0
    code, printed, _ = run(COORDINATOR, "ca", "list", "--ca", folder / "ca")
    assert code == 0
    (row,) = [line for line in printed.splitlines() if "gateway-7" in line]
    assert all(label in row for label in labels)
    assert "valid" in row


def test_the_watchers_table_stays_whole(tmp_path):
    with Coordinator("watched", 1) as coordinator:
        watcher = subprocess.Popen(
            [COORDINATOR, "watch", coordinator.address, "--session=watched"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=NARROW,
        )
        with watcher:
            try:
                train_on_devices(coordinator.address, "watched", 1, tmp_path, "steps=2", "batch-size=8")
                printed, _ = watcher.communicate(timeout=60)
            finally:
                watcher.kill()
    assert watcher.returncode == 0, printed
    (row,) = [line for line in printed.splitlines() if "d0" in line]
    assert row.count("MB") == 2
