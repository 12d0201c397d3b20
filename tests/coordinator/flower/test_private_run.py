"""A Flower run under a privacy budget: it tells nothing beyond, and ends by itself, as a success, when it is spent."""

import json
import logging

import pytest
from client_app_calls import context
from flower_nodes import LocalNodes

from coordinator import server_app
from coordinator.report.figures import figures
from coordinator.report.run import read_run

PRIVATE = {
    "task": "digits",
    "devices": 2,
    "batch-size": 8,
    "threads": 1,
    "cadence": "local-steps",
    "local-steps": 2,
    "steps": 4,
    "rounds": 4,
    "epsilon": 2.0,
    "clip-norm": 0.1,
    "noise-devices": 2,
}


@pytest.fixture(scope="module")
def spent(tmp_path_factory):
    """A run of four rounds of one batch each: each ends with an exchange, and the budget is for two."""
    folder = tmp_path_factory.mktemp("run")
    given = context()
    given.run_config = PRIVATE | {"output": str(folder)}
    told = []
    handler = logging.Handler()
    handler.emit = lambda record: told.append(record.getMessage())
    logging.getLogger("coordinator").addHandler(handler)
    try:
        with LocalNodes(2) as nodes:
            server_app.main(nodes, given)
    finally:
        logging.getLogger("coordinator").removeHandler(handler)
    return folder, nodes, told


def test_it_ends_by_itself_with_what_was_trained_and_says_why(spent):
    folder, _, told = spent
    assert any(
        "the run ends before round 4 of 4: the privacy budget is spent: 2 exchanges took epsilon 2 of 2" in line
        for line in told
    )
    rounds = json.loads((folder / "history.json").read_text())["rounds"]
    assert [entry["step"] for entry in rounds] == [1, 2, 2]
    assert [entry["train"].get("epsilon") for entry in rounds] == [
        pytest.approx(1.35, abs=0.2),
        pytest.approx(2.0, rel=1e-6),
        None,
    ]
    assert "the privacy budget is spent" in rounds[2]["ended"]
    assert (folder / "round-2.safetensors").exists()


def test_no_node_tells_what_the_noise_does_not_cover(spent):
    _, nodes, _ = spent
    assert "evaluate" not in nodes.asked
    trained = [reply.content["metrics"] for reply in nodes.answers if "metrics" in reply.content]
    assert len(trained) == 6
    for metrics in trained:
        assert set(metrics) == {"num-examples", "epsilon", "bytes-sent", "bytes-received"}
        assert metrics["num-examples"] in (0, 1)


def test_the_report_goes_on_counting_over_its_rounds(spent):
    folder, _, _ = spent
    privacy = figures(read_run(folder))["privacy"]
    assert privacy["mode"] == "privacy budget"
    assert privacy["epsilon"] == pytest.approx(2.0, rel=1e-6)
    assert privacy["budget"] == {"epsilon": 2.0, "delta": 1e-5, "unit": "device"}


def test_without_a_budget_the_nodes_tell_how_good_the_model_is(tmp_path):
    plain = {"cadence": "every-batch", "steps": 4, "rounds": 2, "output": str(tmp_path)}
    given = context()
    given.run_config = {name: PRIVATE[name] for name in ("task", "devices", "batch-size", "threads")} | plain
    with LocalNodes(2) as nodes:
        server_app.main(nodes, given)
    assert nodes.asked.count("evaluate") == 4
    rounds = json.loads((tmp_path / "history.json").read_text())["rounds"]
    assert [entry["step"] for entry in rounds] == [2, 4]
    assert all(entry["train"]["loss"] > 0 and 0 <= entry["evaluate"]["accuracy"] <= 1 for entry in rounds)
    assert figures(read_run(tmp_path))["privacy"]["mode"] == "plain"
