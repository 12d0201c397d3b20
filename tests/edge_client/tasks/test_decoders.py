import subprocess
import sys

import numpy as np
import pytest

from edge_client.tasks import TASKS, TaskError, load_task
from edge_client.tasks.decoders import DECODERS, load_foreign_decoder

NO_TORCH = """
import sys
from edge_client.tasks.decoders import DECODERS, load_foreign_decoder
import edge_client, edge_client.cli, edge_client.inference.recognizer, edge_client.inference.server.servers
for name in DECODERS:
    load_foreign_decoder(name)
print([name for name in ("torch", "grpc", "flwr") if name in sys.modules])
"""


def test_every_built_in_task_has_one():
    assert DECODERS.keys() == TASKS.keys()


@pytest.mark.parametrize("name", ["digits", "motion"])
def test_they_decode_as_the_tasks_do(name, tmp_path):
    task, decoder = load_task(name), load_foreign_decoder(name)
    path = tmp_path / ("sample.png" if name == "digits" else "sample.csv")
    label = task.save_sample(3, path)
    decoded = decoder.decode(path)
    np.testing.assert_array_equal(decoded, task.decode(path).numpy())
    assert decoded.shape == task.raw_shape
    assert decoder.true_label(path) == task.true_label(path) == label


def test_they_and_the_server_need_no_pytorch():
    done = subprocess.run([sys.executable, "-c", NO_TORCH], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_what_a_decoder_lacks_is_named(monkeypatch):
    monkeypatch.delitem(sys.modules, "edge_client.tasks.decoders.digits", raising=False)
    monkeypatch.delitem(sys.modules, "edge_client.tasks.images", raising=False)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(TaskError, match=r"task 'digits' needs the package 'PIL'.*pip install 'edgenewton\[images\]'"):
        load_foreign_decoder("digits")
    with pytest.raises(TaskError, match=r"--allow-task other:Task"):
        load_foreign_decoder("other:Task")
