"""The dashboard asks for metrics that the fleet has, in queries that Prometheus understands."""

import contextlib
import datetime as dt
import json
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from container_fleet import DOCKER
from edgenewton.common.identity import Kind

from benchmarks.shared.ports import free_port
from coordinator.identity.authority import Authority

pytestmark = [pytest.mark.docker, pytest.mark.timeout(600)]

FOLDER = DOCKER / "metrics"
OWN_TO_PROMETHEUS = {"up"}
DEADLINE_S = 60
needs_prometheus = pytest.mark.skipif(shutil.which("prometheus") is None, reason="needs Debian's package prometheus")


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


@needs_prometheus
def test_prometheus_understands_configuration_and_queries(tmp_path):
    rules = [{"record": f"panel:{number}", "expr": query} for number, query in enumerate(queries())]
    (tmp_path / "rules.yml").write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    for command in (["config", FOLDER / "prometheus.yml"], ["rules", tmp_path / "rules.yml"]):
        done = subprocess.run(["promtool", "check", *command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


@needs_prometheus
def test_prometheus_reads_a_coordinator_that_asks_for_a_certificate(tmp_path):
    authority = Authority.create(tmp_path / "ca")
    authority.issue(Kind.COORDINATOR, "coordinator", dt.timedelta(days=1), hosts=["127.0.0.1"])
    certificate = authority.issue(Kind.DEVICE, "prometheus", dt.timedelta(days=1))
    page, own, config = free_port(), free_port(), tmp_path / "prometheus.yml"
    config.write_text(
        (FOLDER / "prometheus.tls.yml")
        .read_text()
        .replace("/etc/prometheus/tls", str(certificate))
        .replace("coordinator:8088", f"127.0.0.1:{page}")
    )
    serve = ["edge-coordinator", "serve", "--on-demand", "--port=0", f"--page-port={page}", f"--tls={tmp_path / 'ca'}"]
    ask = ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={tmp_path}/data"]
    serve[0] = str(Path(sys.executable).with_name(serve[0]))
    with running(serve), running([*ask, f"--web.listen-address=127.0.0.1:{own}"]):
        deadline, up = time.monotonic() + DEADLINE_S, None
        while up != "1":
            assert time.monotonic() < deadline, "Prometheus does not get the coordinator's metrics"
            time.sleep(0.5)
            query = f"http://127.0.0.1:{own}/api/v1/query?query=up{{job='coordinator'}}".replace("{", "%7B")
            with contextlib.suppress(OSError), urllib.request.urlopen(query.replace("}", "%7D"), timeout=10) as reply:
                found = json.loads(reply.read())["data"]["result"]
                up = found[0]["value"][1] if found else None


@contextlib.contextmanager
def running(command):
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def test_prometheus_finds_every_device(fleet):
    files = (DOCKER / ".fleet" / fleet.project / "devices.json").read_text()
    targets = [target for group in json.loads(files) for target in group["targets"]]
    assert targets == [f"device-{number}:8080" for number in range(1, 5)]
