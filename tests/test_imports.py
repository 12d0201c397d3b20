"""What importing a part brings along; the contracts in pyproject.toml say who may import whom."""

import subprocess
import sys
from graphlib import CycleError, TopologicalSorter

import grimp
import pytest

TRANSPORT = {"grpc", "google.protobuf", "flwr", "fastapi"}
IMPORT_ALL = """
import importlib, pkgutil, sys
for name in sys.argv[1:]:
    package = importlib.import_module(name)
    for module in pkgutil.walk_packages(package.__path__, f"{name}."):
        importlib.import_module(module.name)
print(*sys.modules)
"""


def test_no_files_import_each_other_in_a_circle():
    graph = grimp.build_graph("edge_client", "coordinator", "edgenewton", "benchmarks", cache_dir=None)
    imports = {file: graph.find_modules_directly_imported_by(file) for file in graph.modules}
    assert len(imports) > 200
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(reversed(error.args[1])))


def test_maths_loads_no_transport():
    command = [sys.executable, "-c", IMPORT_ALL, "edge_client.optim", "edge_client.curvature"]
    loaded = set(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())
    assert {"edge_client.optim.newton", "edge_client.curvature.preconditioner"} <= loaded
    assert loaded & TRANSPORT == set()
