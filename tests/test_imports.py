"""What importing a part brings along; the contracts in pyproject.toml say who may import whom."""

import subprocess
import sys

TRANSPORT = {"grpc", "google.protobuf", "flwr", "fastapi"}


def test_maths_loads_no_transport():
    code = "import sys, edge_client.optim, edge_client.curvature; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert "torch" in loaded
    assert TRANSPORT & set(loaded) == set()
