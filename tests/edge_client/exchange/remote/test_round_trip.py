"""How long a small message takes there and back."""

import time

import pytest
from torch import nn

from benchmarks.shared.tcp_proxy import TcpProxy
from coordinator.serving.server import embedded_coordinator
from coordinator.session.settings import SessionSettings
from edge_client import GradientExchange, LocalSteps, NewtonOptimizer
from edge_client.exchange.remote import round_trip as module
from edge_client.exchange.remote.round_trip import RoundTrip


def test_the_shortest_time_counts(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    round_trip = RoundTrip()
    assert round_trip.seconds == 0.0
    round_trip.arrive()  # an answer to nothing
    for seconds in (0.5, 0.2, 0.3):
        round_trip.leave()
        now[0] += seconds
        round_trip.arrive()
        now[0] += 10.0
    assert round_trip.seconds == pytest.approx(0.2)


def test_answers_belong_to_messages_in_their_order(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    round_trip = RoundTrip()
    round_trip.leave()
    round_trip.begin()  # lost
    for _ in range(5):  # each takes two seconds
        now[0] += 1.0
        if now[0] > 2:
            round_trip.arrive()
        round_trip.leave()
    assert round_trip.seconds == 2.0


def test_it_is_measured_when_a_device_joins_and_with_each_heartbeat():
    with embedded_coordinator() as coordinator:
        coordinator.create_session("s", SessionSettings(devices=1, heartbeat_s=0.2, lease_s=5))
        with (
            TcpProxy(coordinator.address, 0.1) as proxy,
            GradientExchange.connect(proxy.address, session="s", device="a") as exchange,
        ):
            optimizer = NewtonOptimizer(nn.Linear(3, 2), sync=LocalSteps(exchange, 2))
            optimizer.join()
            measured = optimizer._sync._membership._link.round_trip
            assert 0.2 <= measured.seconds < 2.0
            measured._shortest_s = 9.0
            deadline = time.monotonic() + 10
            while measured.seconds == 9.0 and time.monotonic() < deadline:
                time.sleep(0.05)
            assert 0.2 <= measured.seconds < 2.0
