import sys

import pytest
from edgenewton.common.extras import MissingExtraError, needing
from typer.testing import CliRunner

import edge_client
from edge_client.cli import app


def test_a_missing_package_is_named_with_the_extra_that_brings_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "sounds", None)
    expected = r"^hearing needs the package 'sounds', which is not installed: pip install 'edgenewton\[ears\]'$"
    with pytest.raises(MissingExtraError, match=expected) as caught, needing("hearing", "ears"):
        import sounds.waves  # noqa: F401
    assert isinstance(caught.value, ImportError)


def test_a_module_of_ours_that_is_missing_is_no_choice_of_the_user():
    with pytest.raises(ModuleNotFoundError, match="No module named 'edge_client.nothing'"), needing("it", "all"):
        import edge_client.nothing  # noqa: F401


def test_commands_and_names_say_it_in_a_sentence(monkeypatch):
    for name in list(sys.modules):
        if name.startswith(("edge_client.training", "edge_client.optim")):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    done = CliRunner().invoke(app, ["train"])
    assert done.exit_code == 1
    assert done.stderr == "error: to train needs the package 'torch', which is not installed: " + (
        "pip install 'edgenewton[training]'\n"
    )
    with pytest.raises(MissingExtraError, match=r"^edge_client.NewtonOptimizer needs the package 'torch'"):
        _ = edge_client.NewtonOptimizer
