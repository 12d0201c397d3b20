"""What a device measures of its rounds, with a clock that is told the time."""

import pytest

from edge_client.exchange.interface import Pace
from edge_client.sync import pace


def test_batches_the_exchange_and_the_rounds_own_work_are_told_apart(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(pace.time, "perf_counter", lambda: now[0])
    meter = pace.PaceMeter()

    def take(batches_s: float, count: int, encoding_s: float, exchange_s: float, probing_s: float) -> None:
        now[0] += batches_s
        meter.end_batches(count)
        now[0] += encoding_s
        meter.complete()
        now[0] += exchange_s
        meter.arrive()
        now[0] += probing_s
        meter.begin_round()

    meter.begin_round()
    assert meter.pace is None
    take(4.0, count=8, encoding_s=0.25, exchange_s=2.0, probing_s=0.5)
    meter.agreement = 0.75
    assert meter.pace == Pace(batch_s=0.5, exchange_s=2.0, round_s=pytest.approx(0.75), agreement=0.75)
    take(1.0, count=1, encoding_s=0.125, exchange_s=0.25, probing_s=0.125)
    assert meter.pace == Pace(batch_s=1.0, exchange_s=0.25, round_s=pytest.approx(0.25), agreement=0.75)
