"""The dashboard asks for metrics that the fleet has, in queries that Prometheus understands."""

import json
import re
import shutil
import subprocess
import urllib.request

import pytest
from fleet import DOCKER

pytestmark = [pytest.mark.docker, pytest.mark.timeout(600)]

FOLDER = DOCKER / "metrics"
OWN_TO_PROMETHEUS = {"up"}


def queries():
    dashboard = json.loads((FOLDER / "grafana/dashboards/fleet.json").read_text())
    return [target["expr"].replace("$session", ".*") for panel in dashboard["panels"] for target in panel["targets"]]


def metrics(url):
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as reply:
        return set(re.findall(r"^# TYPE (\S+)", reply.read().decode(), re.MULTILINE))


def test_every_metric_of_the_dashboard_is_there(fleet, faultless):
    known = metrics(fleet.page) | metrics(f"http://127.0.0.1:{fleet.environment['REST_PORT']}") | OWN_TO_PROMETHEUS
    asked = {name for query in queries() for name in re.findall(r"\b(?:edgenewton_\w+|up)\b", query)}
    assert len(asked) > 10
    assert {name for name in asked if name not in known and name.removesuffix("_bucket") not in known} == set()


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool, of Debian's package prometheus")
def test_prometheus_understands_configuration_and_queries(tmp_path):
    rules = [{"record": f"panel:{number}", "expr": query} for number, query in enumerate(queries())]
    (tmp_path / "rules.yml").write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    for command in (["config", FOLDER / "prometheus.yml"], ["rules", tmp_path / "rules.yml"]):
        done = subprocess.run(["promtool", "check", *command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_finds_every_device(fleet):
    files = (DOCKER / ".fleet" / fleet.project / "devices.json").read_text()
    targets = [target for group in json.loads(files) for target in group["targets"]]
    assert targets == [f"device-{number}:8080" for number in range(1, 5)]
