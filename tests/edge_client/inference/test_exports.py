"""Exports of models with whole numbers for inputs, and what is said of a model that cannot be exported."""

import gc

import numpy as np
import pytest
import token_tasks
import torch
from engines import EVERY_ENGINE, needs_executorch
from token_tasks import Branches, Bytes, Counts, Declared, Fails, Narrow, Pairs, Rounded, Sorts, Undeclared
from typer.testing import CliRunner

from edge_client.cli import app
from edge_client.inference import Artefact, ArtefactError
from edge_client.inference.engine import TorchEngine, make_engine
from edge_client.inference.onnx_export import to_int8_onnx, to_onnx

EXPORTS = [param for param in EVERY_ENGINE if param.values != ("torch",)]
NAMES = {"export": "a graph", "onnx": "ONNX", "executorch": "ExecuTorch"}


def artefact(task):
    torch.manual_seed(1)
    return Artefact.of(task, f"token_tasks:{type(task).__name__}", task.model(), 0)


@pytest.mark.parametrize("kind", [Declared, Narrow, Bytes, Rounded, Counts])
@pytest.mark.parametrize("engine", EXPORTS)
def test_models_of_whole_numbers_are_exported(engine, kind):
    gc.collect()  # see test_engines.py
    task = kind()
    made = artefact(task)
    raw = torch.randint(11, (4, 5)).to(task.raw_dtype).numpy()
    found = make_engine(engine, made, task)(raw)
    np.testing.assert_allclose(found, TorchEngine(made, task)(raw), rtol=0, atol=1e-5)


def test_models_of_whole_numbers_are_quantised():
    quantised = to_int8_onnx(artefact(Declared()), Declared())
    assert quantised.samples == 16


@pytest.mark.parametrize("engine", EXPORTS)
def test_a_task_that_forgets_the_dtype_is_told_so(engine):
    with pytest.raises(ArtefactError) as caught:
        make_engine(engine, artefact(Undeclared()), Undeclared())
    text = str(caught.value)
    assert text.startswith(
        "the model of task 'undeclared' fails at inputs of float32: RuntimeError: Expected tensor for"
    )
    assert text.endswith(
        "it takes int64, such as tokens: set raw_dtype = torch.int64 in the task, or let preprocess make it"
    )


@pytest.mark.parametrize("engine", EXPORTS)
def test_what_cannot_be_exported_is_said_in_a_line(engine, capfd):
    for kind, start in (
        (Branches, f"the model of task 'branches' cannot be exported to {NAMES[engine]}: what is computed depends on"),
        (Fails, "preprocess of task 'fails' fails at zeros: KeyError: 'no such table'"),
    ):
        with pytest.raises(ArtefactError) as caught:
            make_engine(engine, artefact(kind()), kind())
        assert str(caught.value).startswith(start)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 500
    assert capfd.readouterr() == ("", "")


def test_a_graph_for_one_size_of_batch_alone_is_no_file():
    with pytest.raises(ArtefactError, match=r"'pairs' cannot be exported to ONNX: the number of samples is a constant"):
        to_onnx(artefact(Pairs()), Pairs())


@needs_executorch
def test_a_program_whose_kernel_the_runtime_lacks_is_no_file():
    with pytest.raises(
        ArtefactError, match=r"'sorts' .* ExecuTorch: ValueError: the runtime has no kernel for aten::so"
    ):
        make_engine("executorch", artefact(Sorts()), Sorts())


def test_the_command_says_so_without_a_traceback(tmp_path):
    artefact(Undeclared()).save(tmp_path / "model.pt")
    arguments = ["export", tmp_path / "model.pt", "--format", "onnx", "--output", tmp_path / "model.onnx"]
    arguments += ["--allow-task", f"{token_tasks.__name__}:Undeclared"]
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 1
    assert "set raw_dtype = torch.int64 in the task" in " ".join(result.stderr.split())
    assert "Traceback" not in result.output
    assert len(result.stderr.splitlines()) < 10
    assert not (tmp_path / "model.onnx").exists()
