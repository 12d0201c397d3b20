"""What the installer tells uv, and what the extras bring."""

import re
import runpy
import tomllib
from pathlib import Path

PROJECT = Path(__file__).parents[1]
INSTALLER = runpy.run_path(str(PROJECT / "docker" / "image" / "install-packages"))
LISTED = """:env:.find-links='/opt/wheels'
global.constraint='/etc/versions.txt'
global.extra-index-url='file:///a/simple file:///b/simple'
global.timeout='180'
site.find-links='/opt/wheels /srv/wheels'
"""


def extras():
    return tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def expand(names):
    found = set()
    for name in names:
        for line in extras()[name]:
            own = re.fullmatch(r"edgenewton\[(.*)\]", line)
            found |= expand(own[1].split(",")) if own else {re.split(r"[<>=\[]", line)[0]}
    return found


def test_packages_come_from_where_pip_would_take_them():
    options = INSTALLER["uv_options"](INSTALLER["pip_settings"](LISTED), None)
    assert options == [
        "--extra-index-url=file:///a/simple",
        "--extra-index-url=file:///b/simple",
        "--find-links=/opt/wheels",
        "--find-links=/srv/wheels",
        "--constraint=/etc/versions.txt",
        "--index-strategy=unsafe-best-match",
    ]


def test_pytorch_is_the_one_for_processors_unless_another_is_asked_for():
    assert "--torch-backend=cpu" in INSTALLER["uv_options"](INSTALLER["pip_settings"]("global.timeout='9'\n"), None)
    assert "--torch-backend=cu130" in INSTALLER["uv_options"](INSTALLER["pip_settings"](LISTED), "cu130")


def test_no_extra_brings_what_it_does_not_need():
    assert not {"torch", "flwr", "grpcio", "pillow", "scipy", "matplotlib"} & expand(["recognition"])
    assert not {"torch", "flwr", "onnxruntime"} & expand(["coordinator"])
    assert not {"flwr", "onnxruntime", "scikit-learn", "fastapi"} & expand(["training"])
    assert "flwr" not in expand(["daemon"])
    for_machines = extras().keys() - {"all", "bench", "dev", "docs", "zoo"}
    assert expand(["all"]) >= expand(sorted(for_machines - {"executorch"}))
    assert list(extras()) == sorted(extras())
