"""Every combination of variants is one valid configuration, which is locked down."""

import itertools
import json
import subprocess

import pytest
import yaml
from container_fleet import Fleet

pytestmark = [pytest.mark.docker, pytest.mark.timeout(120)]
VARIANTS = ("state", "metrics", "tls")


@pytest.mark.parametrize(
    "variants", [c for count in range(4) for c in itertools.combinations(VARIANTS, count)], ids="+".join
)
def test_compose_accepts_them(variants, tmp_path):
    fleet = Fleet("edgenewton-config", *variants)
    fleet.script("up", *variants, DRY_RUN="1")
    services = yaml.safe_load(fleet.script("compose", "config"))["services"]
    assert len(services) == 2 + 3 * 4 + 2 * ("metrics" in variants)
    for name, service in services.items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert "NET_ADMIN" not in service.get("cap_add", []) or name.endswith("-link")
        assert all(str(port).startswith("127.0.0.1:") for port in service.get("ports", [])), name
    state = {name for name, service in services.items() if "/var/lib/edgenewton" in json.dumps(service.get("volumes"))}
    kept = {"superlink", "coordinator", *(f"device-{number}" for number in range(1, 5))}
    assert state == (kept if "state" in variants else set())
    if {"tls", "metrics"} <= set(variants):
        assert "prometheus.tls.yml" in json.dumps(services["prometheus"]["volumes"])
    fleet.script("down")


def test_devices_are_told_what_to_insist_on():
    fleet = Fleet("edgenewton-config")
    fleet.script("up", DRY_RUN="1")
    for given in ({}, {"REQUIRE": "secure-aggregation>=3"}):
        services = yaml.safe_load(fleet.script("compose", "config", **given))["services"]
        told = [services[f"device-{number}"]["environment"]["EDGENEWTON_REQUIRE"] for number in range(1, 5)]
        assert told == [given.get("REQUIRE", "")] * 4
    fleet.script("down")


def test_wrong_words_are_named(tmp_path):
    fleet = Fleet("edgenewton-config")
    links = tmp_path / "links.csv"
    links.write_text("up_mbit_s,down_mbit_s,delay_ms\n5,fast,\n")
    for arguments, environment, words in (
        (["tsl"], {}, "variant 'tsl' is unknown; there are"),
        ([], {"DEVICES": "none"}, "DEVICES is 'none'"),
        ([], {"LINKS": str(links)}, "'fast' is no speed in Mbit/s"),
    ):
        environment = fleet.environment | environment
        command = ["docker/up", *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert words in done.stderr
